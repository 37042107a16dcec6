"""A whole `lexico serve` that starts, ends and starts again, before a Redis that stays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis

from tests.support.proxy import Proxy
from tests.support.serve_runs import Run, Runs, serve_runs
from tests.support.servers import RedisServer, redis_server

PLENTY: Final = 1 << 30


@dataclass
class RestartingService:
    """The service, at addresses that stay."""

    runs: Runs
    store: RedisServer
    reload: Proxy
    offload: Proxy
    run: Run | None = None

    @property
    def addresses(self) -> dict[str, str]:
        """As an adapter has them among its settings."""
        return {
            "reload": f"127.0.0.1:{self.reload.port}",
            "offload": f"127.0.0.1:{self.offload.port}",
        }

    def start(self) -> None:
        """A new process, which the proxies lead to from now on."""
        self.run = self.runs("--store", self.store.url)
        found = self.run.wait_until_up()
        for proxy, name in ((self.reload, "reload"), (self.offload, "offload")):
            proxy.server_port = int(found[name].rpartition(":")[2])

    def given(self) -> int:
        """Bytes that the store has sent to whoever reads from it."""
        with redis.Redis.from_url(self.store.url) as client:
            return int(client.info("stats")["total_net_output_bytes"])

    def bound(self, more: int | None) -> None:
        """The store takes so many bytes more and gives up none; as many as it likes for None."""
        with redis.Redis.from_url(self.store.url) as client:
            used = int(client.info("memory")["used_memory"])
            client.config_set("maxmemory", PLENTY if more is None else used + more)
            policy = "volatile-ttl" if more is None else "noeviction"
            client.config_set("maxmemory-policy", policy)


@contextlib.contextmanager
def restarting_service(
    folder: Path, reload: Proxy | None = None, offload: Proxy | None = None
) -> Iterator[RestartingService]:
    """It runs at the beginning of the block.

    Args:
        folder: of the store.
        reload, offload: proxies that lead to it from now on; else it has some of its own.
    """
    bounds = ("--maxmemory", str(PLENTY), "--maxmemory-policy", "volatile-ttl")
    with ExitStack() as stack:
        store = stack.enter_context(redis_server(folder, *bounds))
        runs = stack.enter_context(serve_runs())
        back, front = (
            stack.enter_context(Proxy(0)) if given is None else given for given in (reload, offload)
        )
        made = RestartingService(runs, store, back, front)
        made.start()
        yield made
