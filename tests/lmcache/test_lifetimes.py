"""A whole `lexico serve` behind LMCache's server: it drains under load, comes back, and is full."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from lexico_proto.metrics import ENGINE_PAGES, ENGINE_REQUESTS, ENGINE_TOKENS
from tests.lmcache.conftest import CHUNKS, LOADED
from tests.support.engine_prompts import Plain, Prompts
from tests.support.lmcache_pairs import Counted, Pair
from tests.support.restarting_service import RestartingService, restarting_service
from tests.support.vllm_service import EngineService
from tests.support.waiting import wait_until

FAILED = f"{ENGINE_REQUESTS.name} failed"
LOST = f"{ENGINE_TOKENS.name} lost"
UNSENT = f"{ENGINE_PAGES.name} failed"


@pytest.fixture(scope="module")
def serving(
    tmp_path_factory: pytest.TempPathFactory, service: EngineService
) -> Iterator[RestartingService]:
    """In place of the other service, at its addresses."""
    proxies = service.reload, service.offload
    before = [proxy.server_port for proxy in proxies]
    with restarting_service(tmp_path_factory.mktemp("store"), *proxies) as made:
        for proxy in proxies:
            proxy.cut()
        yield made
    for proxy, port in zip(proxies, before, strict=True):
        proxy.server_port = port
        proxy.cut()


@pytest.fixture
def filled(pair: Pair, serving: RestartingService, prompts: Prompts) -> RestartingService:
    """The first two prompts are in its store."""
    for ids in prompts.apart[:2]:
        pair.hits_again(ids, LOADED)
    pair.forget()
    return serving


def test_a_service_that_drains_under_load_and_starts_again(
    pair: Pair, filled: RestartingService, prompts: Prompts, plain: Plain
) -> None:
    run = filled.run
    assert run is not None
    counted, given = Counted(pair.server), filled.given()
    filled.reload.delay_s = 0.01
    pair.engine.begin(*prompts.apart)
    wait_until(lambda: filled.given() > given + (1 << 20), "a load that is under way")
    run.process.send_signal(signal.SIGTERM)
    found = pair.engine.result()
    assert (found.tokens, found.reasons) == (plain.apart, ["length"] * len(plain.apart))
    assert run.end_of() == 0
    filled.reload.delay_s = 0.0

    pair.forget()
    away = pair.engine.generate(prompts.apart[0])
    assert (away.tokens[0], away.cached) == (plain.apart[0], [0])
    assert counted.changes()[FAILED] >= 1

    filled.start()
    for ids in prompts.apart[:2]:
        pair.hits_again(ids, LOADED)
    pair.forget()
    again = pair.engine.generate(*prompts.apart[:2])
    assert (again.tokens, again.cached) == (plain.apart[:2], [LOADED] * 2)


def test_a_store_that_is_full_takes_no_objects_and_gives_those_that_it_has(
    pair: Pair, filled: RestartingService, prompts: Prompts, plain: Plain
) -> None:
    counted = Counted(pair.server)
    filled.bound(1 << 20)
    try:
        found = pair.engine.generate(*prompts.spare[:2])
        pair.forget()
        stored = pair.engine.generate(prompts.apart[0])
        changes = counted.changes()
    finally:
        filled.bound(None)
    assert found.tokens == plain.spare[:2]
    assert (stored.tokens[0], stored.cached) == (plain.apart[0], [LOADED])
    assert (changes[UNSENT] >= 2 * (CHUNKS - 1), changes[LOST]) == (True, 0)
    assert pair.warnings("store")
    for ids, tokens in zip(prompts.spare[:2], plain.spare[:2], strict=True):
        pair.hits_again(ids, LOADED)  # once there is room, and the service has found that out
        pair.forget()
        assert pair.engine.generate(ids).tokens[0] == tokens
