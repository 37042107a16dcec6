"""The settings that are in force, as the dataclasses that servers are built from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from lexico_proto.errors import ConfigurationError
from lexico_proto.tracing import TracingConfig
from lexico_services.config import ListenConfig, OffloadConfig, ReloadConfig
from lexico_services.door_config import JwtConfig, TlsConfig
from lexico_services.settings.schema import (
    HEALTH,
    LOG_FORMAT,
    LOG_LEVEL,
    OFFLOAD_PORT,
    PAGE_TTL,
    RELOAD_PORT,
    SETTINGS,
    STORE_URL,
    TABLES,
)
from lexico_services.settings.sources import DEFAULT, OPTION, Given, resolve
from lexico_services.settings.values import to_toml
from lexico_services.telemetry.config import MetricsConfig, TelemetryConfig
from lexico_store.settings import StoreSettings
from lexico_worker.config import EncoderConfig
from lexico_worker.ray_runtime import RayConfig

T = TypeVar("T")

NOWHERE: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True)
class Settings:
    """Every setting of the service. Make one with `of`."""

    given: Mapping[str, Given]
    """By key."""

    @classmethod
    def of(
        cls,
        options: Mapping[str, Any],
        file: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Settings:
        """Settings from all sources; see `sources.resolve` for arguments and errors.

        Args:
            environment: None for that of this process.
        """
        given = resolve(options, file, os.environ if environment is None else environment)
        least, most = given["encoder.min_replicas"], given["encoder.max_replicas"]
        if most.source in (DEFAULT, OPTION) and most.value < least.value:
            given["encoder.max_replicas"] = replace(most, value=least.value)
        return cls(given)

    def value(self, key: str) -> Any:
        """Of one setting."""
        return self.given[key].value

    @property
    def store_url(self) -> str:
        """URL of the page store.

        Raises:
            ConfigurationError: none is given.
        """
        url = self.value(STORE_URL)
        if url is None:
            raise ConfigurationError(
                "no page store is given: --store URL, LEXICO_STORE, or url in [store] of a file"
            )
        return str(url)

    @property
    def log_level(self) -> str:
        """debug, info, warning or error."""
        return str(self.value(LOG_LEVEL))

    @property
    def log_format(self) -> str:
        """text or json."""
        return str(self.value(LOG_FORMAT))

    @property
    def telemetry(self) -> TelemetryConfig:
        """What every process tells of itself."""
        metrics, tracing = (
            self._built("metrics", MetricsConfig),
            self._built("tracing", TracingConfig),
        )
        return TelemetryConfig(metrics, tracing, self.log_level, self.log_format)

    @property
    def store(self) -> StoreSettings:
        """How the store is spoken to."""
        return self._built("store", StoreSettings)

    @property
    def offload(self) -> OffloadConfig:
        """Bounds of the ingress."""
        return self._built("offload", OffloadConfig)

    @property
    def reload(self) -> ReloadConfig:
        """Bounds of the reload server."""
        return self._built("reload", ReloadConfig, {"page_ttl_s": PAGE_TTL})

    @property
    def ray(self) -> RayConfig:
        """Which Ray to use."""
        return self._built("ray", RayConfig, {"start_s": "listen.start_s"})

    @property
    def listen_offload(self) -> ListenConfig:
        """Where the ingress listens."""
        return self._listen({"port": OFFLOAD_PORT})

    @property
    def listen_reload(self) -> ListenConfig:
        """Where the reload server listens."""
        return self._listen({"port": RELOAD_PORT})

    def encoder(self, store_url: str) -> EncoderConfig:
        """The encoders of a store that other processes reach by this URL."""
        return self._built(
            "encoder",
            EncoderConfig,
            {
                "page_ttl_s": PAGE_TTL,
                "log_level": LOG_LEVEL,
                "log_format": LOG_FORMAT,
                "count": "metrics.count",
            },
            store_url=store_url,
            store=self.store,
            tracing=self.telemetry.tracing,
        )

    def with_store(self, url: str) -> Settings:
        """The same settings with another page store."""
        return Settings({**self.given, STORE_URL: Given(url, DEFAULT)})

    def without_health(self) -> Settings:
        """The same settings without a port for health, for a process whose parent has it."""
        return Settings({**self.given, HEALTH: Given(None, DEFAULT)})

    def check(self) -> None:
        """Builds all of them.

        Raises:
            ConfigurationError: the first that cannot be used.
        """
        _ = (self.listen_offload, self.listen_reload, self.offload, self.reload)
        _ = (self.ray, self.store, self.encoder("unix:///"), self.telemetry)

    def as_toml(self, *, secrets: bool, sources: bool = False) -> str:
        """A file that gives these settings.

        Args:
            secrets: whether values that may hold passwords are in it, else they are left out.
            sources: whether a comment says where each value comes from.
        """
        lines: list[str] = []
        table = ""
        for key, setting in sorted(SETTINGS.items()):
            given = self.given[key]
            if given.value is None or (setting.secret and not secrets and not sources):
                continue
            if setting.table != table:
                table = setting.table
                lines += ["", f"[{table}]"]
            hidden = setting.secret and not secrets and given.source != DEFAULT
            line = f"{setting.name} = {to_toml('***' if hidden else given.value)}"
            lines.append(f"{line}  # {given.source}" if sources else line)
        return "\n".join(lines[1:]) + "\n"

    def as_document(self) -> dict[str, Any]:
        """Each setting by its key: its value, None where it has none, and where that comes from.
        Values that may hold passwords are not shown."""
        return {
            key: {
                "value": "***" if self._hides(key) else _plain(self.given[key].value),
                "source": self.given[key].source,
            }
            for key in sorted(SETTINGS)
        }

    def _hides(self, key: str) -> bool:
        given = self.given[key]
        return SETTINGS[key].secret and given.value is not None and given.source != DEFAULT

    def _listen(self, elsewhere: Mapping[str, str]) -> ListenConfig:
        tls, jwt = self._built("tls", TlsConfig), self._built("jwt", JwtConfig)
        return self._built("listen", ListenConfig, elsewhere, tls=tls, jwt=jwt)

    def _built(
        self, table: str, cls: type[T], elsewhere: Mapping[str, str] = NOWHERE, **others: Any
    ) -> T:
        """One of the dataclasses.

        Args:
            table: that has most of its fields.
            cls: which.
            elsewhere: field → key, of those that other tables have.
            others: fields that are no settings.

        Raises:
            ConfigurationError: what it refuses, with the files and variables that gave its fields.
        """
        _, left_out = TABLES[table]
        names = [field.name for field in fields(cls) if field.name not in left_out]  # type: ignore[arg-type]
        keys = {name: f"{table}.{name}" for name in names} | dict(elsewhere)
        try:
            return cls(**{name: self.value(key) for name, key in keys.items()}, **others)
        except ConfigurationError as error:
            raise ConfigurationError(f"{error.message}{self._who_gave(keys.values())}") from error

    def _who_gave(self, keys: Iterable[str]) -> str:
        """The files and variables that gave settings, for an error about one of them."""
        sources = {key: self.given[key].source for key in keys}
        told = [f"{k} in {s}" for k, s in sources.items() if s not in (DEFAULT, OPTION)]
        return f" (given: {', '.join(told)})" if told else ""


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value if isinstance(value, bool | int | float | None) else str(value)
