"""What the operator allows each tenant: how long pages live, and how much there may be of what."""

from __future__ import annotations

import logging
import math
import os
import stat
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from lexico_proto.errors import ConfigurationError
from lexico_services.sizes import parse_size
from lexico_store.checks import MAX_TTL_S
from lexico_store.scopes import tenant_scope

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
MAX_FILE_BYTES: Final = 1 << 20


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
            value, least = (
                getattr(self, field.name),
                0 if field.name == "max_pinned_bytes" else 1e-9,
            )
            if value is not None and not (math.isfinite(value) and value >= least):
                raise ConfigurationError(f"{field.name} is {value}: give a positive number")
        if self.page_ttl_s is not None and self.page_ttl_s > MAX_TTL_S:
            raise ConfigurationError(
                f"page_ttl_s is {self.page_ttl_s}: give at most {MAX_TTL_S:.0f} seconds"
            )


class Policies:
    """The policies in a file, read again when it changes. For one event loop.

        [default]
        page_ttl_s = 86400

        [tenants.research]
        page_ttl_s = 3600
        max_stored_bytes = "20 GiB"

    What a tenant's table leaves out is that of `[default]`.
    """

    def __init__(
        self, path: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            path: of the file; None where all tenants have the default policy.
            clock: seconds; tests inject theirs.

        Raises:
            ConfigurationError: the file cannot be read, or an entry cannot be used.
        """
        self._path = path
        self._clock = clock
        self._default = TenantPolicy()
        self._tenants: dict[bytes, TenantPolicy] = {}
        self._stamp = self._stamped() if path is not None else None
        self._due = clock() + LOOK_EVERY_S
        if path is not None:
            self._default, self._tenants = _read(path)

    def of(self, scope: bytes) -> TenantPolicy:
        """The policy of a tenant, by its scope."""
        if self._path is not None and self._clock() >= self._due:
            self._due = self._clock() + LOOK_EVERY_S
            self._look(self._path)
        return self._tenants.get(scope, self._default)

    def _look(self, path: Path) -> None:
        """Reads a file that changed; one that cannot be used leaves the former policies."""
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._default, self._tenants = _read(path)
            _log.warning("policies read again file=%s tenants=%d", path, len(self._tenants))
        except ConfigurationError as error:
            _log.error("policies stay as they were: %s", error.message)

    def _stamped(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path or "")
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path) -> tuple[TenantPolicy, dict[bytes, TenantPolicy]]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise OSError("is no file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot read ({error.strerror or error})") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{path}: over {MAX_FILE_BYTES} bytes, so no file of policies")
    try:
        document = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise ConfigurationError(f"{path}: is no TOML: {why}") from error
    tenants = document.pop("tenants", {})
    default = document.pop("default", {})
    if document or not isinstance(tenants, dict):
        raise ConfigurationError(f"{path}: there are the tables [default] and [tenants.NAME] alone")
    base = _entries(path, "default", default)
    made = {}
    for name, table in tenants.items():
        where = f"tenants.{name}"
        made[tenant_scope(name)] = _policy(path, where, {**base, **_entries(path, where, table)})
    return _policy(path, "default", base), made


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
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise ConfigurationError(
            f'{where} = {value!r:.60} must be bytes, or a text such as "384 MiB"'
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ConfigurationError(f"{where} = {value!r:.60} must be a number")


def _policy(path: Path, where: str, entries: Mapping[str, Any]) -> TenantPolicy:
    try:
        return TenantPolicy(**entries)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {where}: {error.message}") from error
