"""Every setting of the service by name: what files, environment and options may give.

A setting is a field of one of the settings' dataclasses; its key is `TABLE.FIELD`, as in a file:

    [listen]
    drain_s = 15.0

Its variable is `LEXICO_LISTEN__DRAIN_S`. The two underscores keep it apart from the variables that
Kubernetes makes of the names of Services, such as `LEXICO_RELOAD_PORT=tcp://10.0.0.1:7412`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Final

from lexico_proto.logs import FORMATS
from lexico_proto.tracing import TracingConfig
from lexico_services.config import ListenConfig, OffloadConfig, ReloadConfig
from lexico_services.door_config import JwtConfig, TlsConfig
from lexico_services.telemetry.config import MetricsConfig
from lexico_store.settings import StoreSettings
from lexico_worker.config import EncoderConfig
from lexico_worker.ray_runtime import RayConfig

STORE_URL: Final = "store.url"
PAGE_TTL: Final = "store.page_ttl_s"
OFFLOAD_PORT: Final = "offload.port"
RELOAD_PORT: Final = "reload.port"
HEALTH: Final = "listen.health_address"
LOG_LEVEL: Final = "log.level"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMAT: Final = "log.format"
CHOICES: Final = {LOG_LEVEL: LOG_LEVELS, LOG_FORMAT: FORMATS}
"""Settings that are one of a few words."""

STORE_VARIABLE: Final = "LEXICO_STORE"
"""Variable of `store.url`, which has a name of its own."""


@dataclass(frozen=True)
class Setting:
    """One setting."""

    table: str
    name: str
    kind: str
    """Annotation of its field, such as `float | None`."""
    default: Any
    """None too where there is no value by default."""

    @property
    def key(self) -> str:
        """`TABLE.NAME`."""
        return f"{self.table}.{self.name}"

    @property
    def variable(self) -> str:
        """Environment variable that gives it."""
        if self.key == STORE_URL:
            return STORE_VARIABLE
        return f"LEXICO_{self.table}__{self.name}".upper()

    @property
    def secret(self) -> bool:
        """Whether its value may hold a password."""
        return self.key == STORE_URL


TABLES: Final[Mapping[str, tuple[type, frozenset[str]]]] = {
    "listen": (ListenConfig, frozenset({"port", "tls", "jwt"})),
    "tls": (TlsConfig, frozenset()),
    "jwt": (JwtConfig, frozenset()),
    "offload": (OffloadConfig, frozenset()),
    "reload": (ReloadConfig, frozenset({"page_ttl_s"})),
    "encoder": (
        EncoderConfig,
        frozenset(
            {"store_url", "store", "page_ttl_s", "log_level", "log_format", "count", "tracing"}
        ),
    ),
    "ray": (RayConfig, frozenset({"start_s"})),
    "store": (StoreSettings, frozenset()),
    "metrics": (MetricsConfig, frozenset()),
    "tracing": (TracingConfig, frozenset()),
}
"""table → the dataclass whose fields it holds, less those that are given elsewhere."""


def _all() -> dict[str, Setting]:
    found = [
        Setting("offload", "port", "int", 7411),
        Setting("reload", "port", "int", 7412),
        Setting("store", "url", "str", None),
        Setting("store", "page_ttl_s", "float", ReloadConfig.page_ttl_s),
        Setting("log", "level", "str", "warning"),
        Setting("log", "format", "str", "text"),
    ]
    for table, (cls, elsewhere) in TABLES.items():
        for field in fields(cls):
            if field.name not in elsewhere:
                default = None if field.default is MISSING else field.default
                found.append(Setting(table, field.name, str(field.type), default))
    return {setting.key: setting for setting in found}


SETTINGS: Final[Mapping[str, Setting]] = _all()
"""key → setting."""
