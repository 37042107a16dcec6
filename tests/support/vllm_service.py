"""The service in a thread of the test's process, behind proxies that misbehave as told."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lexico_codec.inputs import PageDigests
from lexico_codec.keys import page_keys as keys_of
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import Family
from lexico_services.auth import DEFAULT_TENANT
from lexico_services.config import ReloadConfig
from lexico_store import MemoryStore, keys
from lexico_store.scopes import tenant_scope
from tests.support.client_fixtures import flipped
from tests.support.proxy import Proxy
from tests.support.services import Services, running_services
from tests.support.waiting import PATIENCE_S


@dataclass
class EngineService:
    """What engines of a test share their caches through."""

    services: Services
    store: MemoryStore
    reload: Proxy
    offload: Proxy

    @property
    def settings(self) -> dict[str, Any]:
        """Addresses and patience, for `kv_connector_extra_config`."""
        calls = ("match", "load", "idle", "offload")
        return {
            "reload": f"127.0.0.1:{self.reload.port}",
            "offload": f"127.0.0.1:{self.offload.port}",
            **{f"{call}_seconds": PATIENCE_S for call in calls},
        }

    def counts(self, family: Family) -> dict[tuple[str, ...], int | float]:
        """What its servers counted."""
        return self.services.counts(family)

    def stored(self, spec: CacheSpec, token_ids: Sequence[int]) -> int:
        """Leading pages of a prompt that are in the store."""
        with self.store._lock:
            found = [name in self.store._pages for name in _names(spec, token_ids)]
        return [*found, False].index(False)

    def damage(
        self, spec: CacheSpec, token_ids: Sequence[int], page: int, inputs: PageDigests = ()
    ) -> None:
        """Turns a bit of the last frame of a page."""
        name = _names(spec, token_ids, inputs)[page]
        entry = self.store._pages[name]
        frames = (*entry.frames[:-1], flipped(entry.frames[-1]))
        self.store._pages[name] = type(entry)(frames, entry.expires_s)


def _names(spec: CacheSpec, token_ids: Sequence[int], inputs: PageDigests = ()) -> list[str]:
    """Of the pages of a caller without a token."""
    scope = tenant_scope(DEFAULT_TENANT)
    return [keys.page(scope, key) for key in keys_of(spec, token_ids, inputs)]


@contextlib.contextmanager
def engine_service(
    reload: ReloadConfig | None = None, policy_file: Path | None = None
) -> Iterator[EngineService]:
    """Both servers, a store in memory and encoders in threads, for the block."""
    store, loop = MemoryStore(max_bytes=4 << 30), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="engine-service")
    thread.start()
    running = running_services(store, reload=reload, policy_file=policy_file)

    def done(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    try:
        services = done(running.__aenter__())
        try:
            up, down = (
                int(address.rpartition(":")[2])
                for address in (
                    services.offload_address,
                    services.reload_address,
                )
            )
            with Proxy(down) as back, Proxy(up) as front:
                yield EngineService(services, store, back, front)
        finally:
            done(running.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
