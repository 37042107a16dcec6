"""A whole `lexico serve` beside the engine: it drains under load, comes back, and is full."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from lexico_proto.metrics import ENGINE_PAGES, ENGINE_REQUESTS, ENGINE_TOKENS
from tests.sglang.conftest import STORED, hits_again
from tests.support.engine_prompts import Plain, Prompts
from tests.support.restarting_service import RestartingService, restarting_service
from tests.support.sglang_engine import Engine
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
def filled(engine: Engine, serving: RestartingService, prompts: Prompts) -> RestartingService:
    """The two prompts are in its store."""
    for ids in prompts.apart:
        hits_again(engine, ids)
    engine.flush()
    return serving


def test_a_service_that_drains_under_load_and_starts_again(
    engine: Engine, filled: RestartingService, prompts: Prompts, plain: Plain
) -> None:
    run = filled.run
    assert run is not None
    before, given = engine.shown(), filled.given()
    filled.reload.delay_s = 0.01
    engine.begin(*prompts.apart)
    wait_until(lambda: filled.given() > given + (1 << 20), "a load that is under way")
    run.process.send_signal(signal.SIGTERM)
    found = engine.result()
    assert (found.tokens, found.reasons) == (plain.apart, ["length"] * 2)
    assert run.end_of() == 0
    filled.reload.delay_s = 0.0

    engine.flush()
    away = engine.generate(prompts.apart[0])
    assert (away.tokens[0], away.cached) == (plain.apart[0], [0])
    assert (engine.shown() - before)[FAILED] >= 1

    filled.start()
    for ids in prompts.apart:
        hits_again(engine, ids)
    engine.flush()
    again = engine.generate(*prompts.apart)
    assert again.tokens == plain.apart
    assert again.loaded == [STORED] * 2


def test_a_store_that_is_full_takes_no_pages_and_gives_those_that_it_has(
    engine: Engine, filled: RestartingService, prompts: Prompts, plain: Plain
) -> None:
    before = engine.shown()
    filled.bound(1 << 20)
    try:
        found = engine.generate(*prompts.spare[:2])
        engine.flush()
        stored = engine.generate(prompts.apart[0])
        changes = engine.shown() - before
    finally:
        filled.bound(None)
    assert found.tokens == plain.spare[:2]
    assert (stored.tokens[0], stored.loaded[0]) == (plain.apart[0], STORED)
    assert (changes[UNSENT] >= 2 * 8, changes[LOST]) == (True, 0)
    for ids, tokens in zip(prompts.spare[:2], plain.spare[:2], strict=True):
        hits_again(engine, ids)  # once there is room, and the service has found that out
        engine.flush()
        assert engine.generate(ids).tokens[0] == tokens
