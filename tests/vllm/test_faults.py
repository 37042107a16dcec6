"""A service that is gone, silent, cut off in the middle or has damaged pages: requests finish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import (
    ENGINE_PAGES,
    ENGINE_REQUESTS,
    ENGINE_STAGED,
    ENGINE_TOKENS,
    RECEIVED_BYTES,
    SENT_BYTES,
    STREAMS,
)
from tests.support.engine_prompts import Prompts
from tests.support.vllm_engine import Engine, Nursery
from tests.support.vllm_service import EngineService
from tests.support.waiting import wait_until
from tests.vllm.conftest import LOADED

SHORT: Final = {"match_seconds": 10.0, "load_seconds": 30.0, "idle_seconds": 10.0}
"""Deadlines that pass."""


@pytest.fixture(scope="module")
def engine(
    nursery: Nursery, service: EngineService, prompts: Prompts, plain: list[list[int]]
) -> Iterator[Engine]:
    """An engine that stored every prompt, and has none of them in its own cache."""
    with nursery.engine({**service.settings, "codec": "lossless", **SHORT}) as made:
        assert [made.generate(ids).tokens[0] for ids in prompts.apart] == plain
        made.settle()
        yield made


@pytest.fixture(autouse=True)
def cleared(engine: Engine, service: EngineService) -> Iterator[None]:
    engine.reset()
    yield
    service.reload.delay_s = 0.0


def changed(engine: Engine, family: str, before: dict[str, int]) -> dict[str, int]:
    after = engine.counted(family)
    return {name: n - before.get(name, 0) for name, n in after.items() if n != before.get(name, 0)}


def hits_again(engine: Engine, ids: list[int]) -> None:
    """Waits until the service is known to be back."""

    def hit() -> bool:
        engine.reset()
        return engine.generate(ids, max_tokens=1).cached == [LOADED]

    wait_until(hit, "a hit")


def test_a_damaged_page_is_computed_and_stored_anew(
    engine: Engine,
    service: EngineService,
    prompts: Prompts,
    plain: list[list[int]],
    spec: CacheSpec,
) -> None:
    service.damage(spec, prompts.apart[0], 4)
    requests, tokens = (engine.counted(f.name) for f in (ENGINE_REQUESTS, ENGINE_TOKENS))
    found = engine.generate(prompts.apart[0])
    assert (found.tokens[0], found.reasons) == (plain[0], ["length"])
    assert changed(engine, ENGINE_REQUESTS.name, requests) == {"hit": 1}
    lost = changed(engine, ENGINE_TOKENS.name, tokens)
    assert (lost["loaded"], lost["lost"]) == (256, LOADED - 256)
    engine.settle()
    assert service.stored(spec, prompts.apart[0]) == 9
    hits_again(engine, prompts.apart[0])


def test_a_service_that_is_gone_costs_nothing_but_the_hit(
    engine: Engine,
    service: EngineService,
    prompts: Prompts,
    plain: list[list[int]],
    nursery: Nursery,
) -> None:
    said = len(nursery.said())
    before = engine.counted(ENGINE_REQUESTS.name)
    service.reload.refuse()
    service.offload.refuse()
    try:
        for ids, tokens in zip(prompts.apart, plain, strict=True):
            found = engine.generate(ids)
            assert (found.tokens[0], found.cached) == (tokens, [0])
    finally:
        service.reload.accept()
        service.offload.accept()
    assert changed(engine, ENGINE_REQUESTS.name, before) == {"failed": len(plain)}
    assert engine.counted(ENGINE_STAGED.name) == {"": 0}
    assert nursery.said()[said:].count("match failed") <= 1  # a minute
    hits_again(engine, prompts.apart[1])


def test_a_service_that_is_silent_costs_a_deadline(
    engine: Engine, service: EngineService, prompts: Prompts, plain: list[list[int]]
) -> None:
    before = engine.counted(ENGINE_REQUESTS.name)
    service.reload.swallows = True
    try:
        found = engine.generate(*prompts.apart)
    finally:
        service.reload.swallows = False
        service.reload.cut()
    assert (found.tokens, found.cached) == (plain, [0] * len(plain))
    assert changed(engine, ENGINE_REQUESTS.name, before) == {"failed": len(plain)}
    hits_again(engine, prompts.apart[1])


def test_a_slow_service_is_waited_for_and_holds_nobody_else_up(
    engine: Engine, service: EngineService, prompts: Prompts, plain: list[list[int]]
) -> None:
    """A prompt that is computed comes while another is loaded, and is answered first."""
    short = prompts.spare[1][:40]  # no full page: nobody is asked
    alone = engine.generate(short, max_tokens=1)
    engine.reset()
    tokens = engine.counted(ENGINE_TOKENS.name)
    service.reload.delay_s = 0.05
    found = engine.generate(prompts.apart[3], short, max_tokens=1)
    assert (found.tokens[0], found.tokens[1]) == (plain[3][:1], alone.tokens[0])
    assert found.cached == [LOADED, 0]
    assert found.first[1] < found.first[0]
    assert changed(engine, ENGINE_TOKENS.name, tokens) == {
        "asked": 640,
        "promised": LOADED,
        "loaded": LOADED,
    }


def test_a_service_that_dies_in_the_middle_of_a_load(
    engine: Engine, service: EngineService, prompts: Prompts, plain: list[list[int]]
) -> None:
    tokens, sent = engine.counted(ENGINE_TOKENS.name), service.counts(SENT_BYTES)
    service.reload.delay_s = 0.02
    engine.begin(prompts.apart[2])
    wait_until(lambda: service.counts(STREAMS) or service.counts(SENT_BYTES) != sent, "a load")
    service.reload.refuse()
    found = engine.result()
    service.reload.accept()
    assert (found.tokens[0], found.reasons) == (plain[2], ["length"])
    assert changed(engine, ENGINE_TOKENS.name, tokens)["lost"] > 0
    service.reload.delay_s = 0.0
    hits_again(engine, prompts.apart[2])


def test_a_service_that_dies_in_the_middle_of_a_store(
    engine: Engine, service: EngineService, prompts: Prompts, spec: CacheSpec
) -> None:
    """It loses that store alone, and the next request stores what is missing."""
    ids, received = prompts.spare[2], service.counts(RECEIVED_BYTES)
    pages = engine.counted(ENGINE_PAGES.name)
    service.offload.upload_delay_s = 0.01
    engine.begin(ids)
    wait_until(lambda: service.counts(RECEIVED_BYTES) != received, "a page to be received")
    service.offload.refuse()
    found = engine.result()
    engine.settle()
    service.offload.upload_delay_s = 0.0
    service.offload.accept()
    assert found.reasons == ["length"]
    assert changed(engine, ENGINE_PAGES.name, pages) == {"failed": 9}
    assert engine.counted(ENGINE_STAGED.name) == {"": 0}
    assert service.stored(spec, ids) < 9

    def stored() -> bool:
        engine.reset()
        assert engine.generate(ids).tokens == found.tokens
        engine.settle()
        return service.stored(spec, ids) == 9

    wait_until(stored, "all pages to be stored")


def test_an_ingress_that_is_gone_loses_stores_alone(
    engine: Engine, service: EngineService, prompts: Prompts, nursery: Nursery
) -> None:
    pages = engine.counted(ENGINE_PAGES.name)
    service.offload.refuse()
    try:
        first = engine.generate(prompts.spare[0])
        engine.settle()
    finally:
        service.offload.accept()
    assert changed(engine, ENGINE_PAGES.name, pages) == {"failed": 9}
    assert engine.counted(ENGINE_STAGED.name) == {"": 0}
    engine.reset()
    assert engine.generate(prompts.spare[0]).tokens == first.tokens
    warnings = [line for line in nursery.said().splitlines() if "store failed" in line]
    assert len(warnings) == 1
