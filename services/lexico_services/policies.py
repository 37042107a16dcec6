"""What the operator allows each tenant: how long pages live, and how much there may be of what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Final

from lexico_proto.errors import ConfigurationError
from lexico_proto.metrics import Metrics
from lexico_proto.watched import WatchedFiles
from lexico_services.caller import is_tenant
from lexico_services.sizes import parse_size
from lexico_services.toml_text import is_whole, read_toml
from lexico_store.checks import MAX_TTL_S
from lexico_store.scopes import tenant_scope

_LEAST: Final = {"max_pinned_bytes": 0, "page_ttl_s": 0.001}


@dataclass(frozen=True)
class TenantPolicy:
    """One tenant's. None is no bound of its own.

    Raises:
        ConfigurationError: a value that cannot be used, naming its field.
    """

    page_ttl_s: float | None = None
    """Seconds a page lives after it is stored or last used; None for `store.page_ttl_s`. A full
    store lets pages go that expire first: a shorter life is also a lower rank."""
    max_stored_bytes: int | None = None
    """Bytes of pages stored, about: nothing more is stored above it."""
    max_pinned_bytes: int = 0
    """Bytes of pages that are pinned, which a full store cannot let go."""
    max_inflight_bytes: int | None = None
    """Raw bytes of pages that an ingress holds for it at a time."""
    max_calls_per_s: float | None = None
    """Put, Match and Get calls a second, to each server; a second's worth may come at once."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = _LEAST.get(field.name, 1e-9)
            if value is not None and not (math.isfinite(value) and value >= least):
                raise ConfigurationError(f"{field.name} is {value}: give a positive number")
        if self.page_ttl_s is not None and self.page_ttl_s > MAX_TTL_S:
            raise ConfigurationError(
                f"page_ttl_s is {self.page_ttl_s}: give at most {MAX_TTL_S:.0f} seconds"
            )


class Policies:
    """The policies in a file, read again when it changes: see `WatchedFiles`.

        [default]
        page_ttl_s = 86400

        [tenants.research]
        page_ttl_s = 3600
        max_stored_bytes = "20 GiB"

    What a tenant's table leaves out is that of `[default]`.
    """

    def __init__(self, path: Path | None = None, metrics: Metrics | None = None) -> None:
        """
        Args:
            path: of the file; None where all tenants have the default policy.
            metrics: where later readings are counted, if anywhere.

        Raises:
            ConfigurationError: the file cannot be read, or an entry cannot be used.
        """
        self._file = None
        if path is not None:
            read = partial(_read, path)
            self._file = WatchedFiles("policy file", (path,), read, metrics)

    def of(self, scope: bytes) -> TenantPolicy:
        """The policy of a tenant, by its scope."""
        if self._file is None:
            return _NO_BOUNDS
        policies = self._file.now()
        return policies.tenants.get(scope, policies.default)

    def names(self) -> tuple[str, ...]:
        """The tenants that have a table."""
        return () if self._file is None else self._file.now().names


_NO_BOUNDS: Final = TenantPolicy()


@dataclass(frozen=True)
class _File:
    default: TenantPolicy
    tenants: Mapping[bytes, TenantPolicy]
    """By their scopes."""
    names: tuple[str, ...]


def _read(path: Path, contents: Sequence[bytes]) -> _File:
    document = read_toml(path, contents[0])
    tenants = document.pop("tenants", {})
    default = document.pop("default", {})
    if document or not isinstance(tenants, dict):
        raise ConfigurationError(f"{path}: there are the tables [default] and [tenants.NAME] alone")
    base = _entries(path, "default", default)
    made = {}
    for name, table in tenants.items():
        where = f"tenants.{name}"
        if not is_tenant(name):
            raise ConfigurationError(f"{path}: [tenants.{name!r:.60}]: is no tenant's name")
        made[tenant_scope(name)] = _policy(path, where, {**base, **_entries(path, where, table)})
    return _File(_policy(path, "default", base), made, tuple(tenants))


def _entries(path: Path, where: str, table: object) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path}: {where} must be a table: [{where}]")
    known = {field.name: field for field in fields(TenantPolicy)}
    entries = {}
    for name, value in table.items():
        if name not in known:
            raise ConfigurationError(f"{path}: {where}.{name} is none of {', '.join(known)}")
        entries[name] = _value(f"{path}: {where}.{name}", str(known[name].type), value)
    return entries


def _value(where: str, kind: str, value: object) -> int | float:
    """A number of the field's kind.

    Raises:
        ConfigurationError: anything else.
    """
    size = parse_size(value) if isinstance(value, str) else None
    if kind.startswith("int"):
        if size is not None:
            return size
        if isinstance(value, int) and is_whole(value):
            return value
        raise ConfigurationError(
            f'{where} = {value!r:.60} must be bytes, or a text such as "384 MiB"'
        )
    if isinstance(value, float) or (isinstance(value, int) and is_whole(value)):
        return value
    raise ConfigurationError(f"{where} = {value!r:.60} must be a number")


def _policy(path: Path, where: str, entries: Mapping[str, Any]) -> TenantPolicy:
    try:
        return TenantPolicy(**entries)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {where}: {error.message}") from error
