"""A whole `lexico serve` beside the engine: it drains under load, comes back, and is full."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Final

import pytest

from lexico_proto.metrics import ENGINE_PAGES, ENGINE_REQUESTS, ENGINE_STAGED, ENGINE_TOKENS
from tests.support.engine_prompts import Prompts
from tests.support.restarting_service import RestartingService, restarting_service
from tests.support.vllm_engine import Engine, Nursery
from tests.support.waiting import PATIENCE_S, wait_until
from tests.vllm.conftest import LOADED

DEADLINES: Final = {
    "match_seconds": 30.0,
    "load_seconds": 60.0,
    "idle_seconds": 10.0,
    "offload_seconds": PATIENCE_S,
}
"""Of calls that end, in some tests, because nobody answers."""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestartingService]:
    with restarting_service(tmp_path_factory.mktemp("store")) as made:
        yield made


@pytest.fixture(scope="module")
def engine(
    nursery: Nursery, serving: RestartingService, prompts: Prompts, plain: list[list[int]]
) -> Iterator[Engine]:
    """It stored two of the prompts."""
    with nursery.engine({**serving.addresses, **DEADLINES, "codec": "lossless"}) as made:
        for ids, tokens in zip(prompts.apart[:2], plain[:2], strict=True):
            assert made.generate(ids).tokens[0] == tokens
        made.settle()
        assert made.counted(ENGINE_PAGES.name)["sent"] == 18
        made.reset()
        yield made


def test_a_service_that_drains_under_load_and_starts_again(
    engine: Engine, serving: RestartingService, prompts: Prompts, plain: list[list[int]]
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
    engine: Engine,
    serving: RestartingService,
    prompts: Prompts,
    plain: list[list[int]],
    nursery: Nursery,
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
