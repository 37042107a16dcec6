"""A whole `lexico serve` beside the engine: it drains under load, comes back, and is full."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import pytest
import redis

from lexico_proto.metrics import ENGINE_PAGES, ENGINE_REQUESTS, ENGINE_STAGED, ENGINE_TOKENS
from tests.support.proxy import Proxy
from tests.support.serve_runs import Run, Runs, serve_runs
from tests.support.servers import RedisServer, redis_server
from tests.support.vllm_engine import Engine, Nursery
from tests.support.waiting import PATIENCE_S, wait_until
from tests.vllm.conftest import LOADED, Prompts

PLENTY: Final = 1 << 30
DEADLINES: Final = {
    "match_seconds": 30.0,
    "load_seconds": 60.0,
    "idle_seconds": 10.0,
    "offload_seconds": PATIENCE_S,
}
"""Of calls that end, in some tests, because nobody answers."""


@dataclass
class Serving:
    """A service that starts and ends, at addresses that stay."""

    runs: Runs
    store: RedisServer
    reload: Proxy
    offload: Proxy
    run: Run | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "reload": f"127.0.0.1:{self.reload.port}",
            "offload": f"127.0.0.1:{self.offload.port}",
            "codec": "lossless",
            **DEADLINES,
        }

    def start(self) -> None:
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


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("store")
    bounds = ("--maxmemory", str(PLENTY), "--maxmemory-policy", "volatile-ttl")
    with ExitStack() as stack:
        store = stack.enter_context(redis_server(folder, *bounds))
        runs = stack.enter_context(serve_runs())
        back, front = (stack.enter_context(Proxy(0)) for _ in range(2))
        made = Serving(runs, store, back, front)
        made.start()
        yield made


@pytest.fixture(scope="module")
def engine(
    nursery: Nursery, serving: Serving, prompts: Prompts, plain: list[list[int]]
) -> Iterator[Engine]:
    """It stored two of the prompts."""
    with nursery.engine(serving.settings) as made:
        for ids, tokens in zip(prompts.apart[:2], plain[:2], strict=True):
            assert made.generate(ids).tokens[0] == tokens
        made.settle()
        assert made.counted(ENGINE_PAGES.name)["sent"] == 18
        made.reset()
        yield made


def test_a_service_that_drains_under_load_and_starts_again(
    engine: Engine, serving: Serving, prompts: Prompts, plain: list[list[int]]
) -> None:
    run = serving.run
    assert run is not None
    serving.reload.delay_s = 0.01
    given = serving.given()
    engine.begin(*prompts.apart)
    wait_until(lambda: serving.given() > given + (1 << 20), "a load that is under way")
    run.process.send_signal(signal.SIGTERM)
    found = engine.result()
    assert (found.tokens, found.reasons) == (plain, ["length"] * len(plain))
    assert run.end_of() == 0
    serving.reload.delay_s = 0.0

    engine.reset()
    away = engine.generate(prompts.apart[0])
    assert (away.tokens[0], away.cached) == (plain[0], [0])
    assert engine.counted(ENGINE_REQUESTS.name)["failed"] >= 1
    engine.settle()
    assert engine.counted(ENGINE_STAGED.name) == {"": 0}

    serving.start()

    def hit() -> bool:
        """`cached` says what was promised: the worker may still wait to connect again."""
        before = engine.counted(ENGINE_TOKENS.name).get("loaded", 0)
        engine.reset()
        engine.generate(prompts.apart[1], max_tokens=1)
        return engine.counted(ENGINE_TOKENS.name).get("loaded", 0) == before + LOADED

    wait_until(hit, "a hit on what the service before stored")
    engine.settle()
    tokens = engine.counted(ENGINE_TOKENS.name)
    engine.reset()
    again = engine.generate(*prompts.apart[:2])
    assert (again.tokens, again.cached) == (plain[:2], [LOADED] * 2)
    assert engine.counted(ENGINE_TOKENS.name)["loaded"] == tokens["loaded"] + 2 * LOADED


def test_a_store_that_is_full_takes_no_pages_and_gives_those_that_it_has(
    engine: Engine, serving: Serving, prompts: Prompts, plain: list[list[int]], nursery: Nursery
) -> None:
    engine.reset()
    pages, tokens = (engine.counted(f.name) for f in (ENGINE_PAGES, ENGINE_TOKENS))
    said = len(nursery.said())
    serving.bound(1 << 20)
    try:
        first = [engine.generate(ids) for ids in prompts.spare[:3]]
        engine.settle()
        stored = engine.generate(prompts.apart[0])
    finally:
        serving.bound(None)
    assert (stored.tokens[0], stored.cached) == (plain[0], [LOADED])
    after = engine.counted(ENGINE_PAGES.name)
    assert after.get("failed", 0) - pages.get("failed", 0) >= 3 * 8
    assert engine.counted(ENGINE_STAGED.name) == {"": 0}
    assert engine.counted(ENGINE_TOKENS.name).get("lost", 0) == tokens.get("lost", 0)
    warnings = [line for line in nursery.said()[said:].splitlines() if "store failed" in line]
    assert len(warnings) <= 1  # one a minute, and the engine may have given one before
    engine.reset()
    again = [engine.generate(ids) for ids in prompts.spare[:3]]
    assert [each.tokens for each in again] == [each.tokens for each in first]

    def hit() -> bool:
        """Once there is room, and the service has found that out."""
        engine.settle()
        engine.reset()
        return engine.generate(prompts.spare[0], max_tokens=1).cached == [LOADED]

    wait_until(hit, "a hit on what there was no room for")
