"""A reload server over an embedded store, each in a process of its own, and small pages in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from lexico_codec.geometry import Geometry
from lexico_codec.spec import CacheSpec, make_spec
from lexico_services.auth import DEFAULT_TENANT
from lexico_services.ending import Ending
from lexico_services.reload.child import ReloadChild
from lexico_services.settings import Settings
from lexico_store import PageStore, StoreSettings, open_store, reachable_store
from lexico_store.scopes import tenant_scope

START_S: Final = 300.0
SCOPE: Final = tenant_scope(DEFAULT_TENANT)
TTL_S: Final = 3600.0


def small_spec() -> CacheSpec:
    """Pages of 16 tokens and 16 KiB, stored as they are."""
    geometry = Geometry(layers=2, kv_heads=2, head_dim=64, dtype="bfloat16")
    return make_spec(weights=b"w" * 32, geometry=geometry, codec="raw", page_tokens=16)


@contextmanager
def embedded_store() -> Iterator[tuple[str, PageStore]]:
    """A store in a server of its own: its URL, and a handle."""
    with reachable_store("embedded://", StoreSettings()) as url, open_store(url) as store:
        yield url, store


@contextmanager
def reload_servers(url: str, options: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Addresses of a reload server for each of the settings, all over the store at `url`."""
    children: list[ReloadChild] = []
    try:
        for own in options:
            settings = Settings.of({"reload.port": 0, **own}, None, {}).with_store(url)
            children.append(ReloadChild(settings))
        yield [_address(child) for child in children]
    finally:
        for child in children:
            child.stop(Ending(10.0))


def _address(child: ReloadChild) -> str:
    address = child.address(threading.Event(), START_S)
    if address is None:
        raise SystemExit("the reload server did not start")
    return address
