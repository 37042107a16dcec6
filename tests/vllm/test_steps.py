"""Prompts that take many steps, are preempted, share a beginning, or end within a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from lexico_proto.metrics import ENGINE_PAGES, ENGINE_REQUESTS, ENGINE_TOKENS
from tests.support.engine_prompts import Prompts
from tests.support.vllm_engine import Engine, Nursery
from tests.support.vllm_service import EngineService

SHARED: Final = 320
"""Tokens, five pages, that some prompts have in common."""
MANY: Final = 100
"""Tokens that each of them is answered with: more than there are blocks for."""

SMALL: Final[dict[str, Any]] = {
    "max_num_batched_tokens": 128,
    "num_gpu_blocks_override": 34,
    "max_model_len": 768,
}
"""Steps of 128 tokens, and blocks for 1,088: for the prompts, but not for their answers."""


def branches(prompts: Prompts) -> list[list[int]]:
    """Four prompts with a common beginning."""
    return [prompts.branch(SHARED, other)[: 400 + 40 * other] for other in range(4)]


@pytest.fixture(scope="module")
def expected(nursery: Nursery, prompts: Prompts) -> list[list[int]]:
    """One after another, in an engine without us that has room for all."""
    with nursery.engine() as engine:
        return [engine.generate(ids, max_tokens=MANY).tokens[0] for ids in branches(prompts)]


@pytest.fixture(scope="module")
def storing(
    nursery: Nursery, service: EngineService, prompts: Prompts, expected: list[list[int]]
) -> None:
    """An engine with small steps and few blocks computed them, all at once, and stored them."""
    with nursery.engine({**service.settings, "codec": "lossless"}, **SMALL) as engine:
        found = engine.generate(*branches(prompts), max_tokens=MANY)
        engine.settle()
        assert found.tokens == expected
        assert engine.own()["vllm:num_preemptions"] > 0
        assert sum(engine.counted(ENGINE_PAGES.name).values()) >= 5 + 1 + 1 + 2 + 3


@pytest.fixture(scope="module")
def loading(nursery: Nursery, service: EngineService, storing: None) -> Iterator[Engine]:
    with nursery.engine({**service.settings, "codec": "lossless"}, **SMALL) as engine:
        yield engine


def test_concurrent_prompts_with_a_common_beginning_in_small_steps(
    loading: Engine, prompts: Prompts, expected: list[list[int]]
) -> None:
    found = loading.generate(*branches(prompts), max_tokens=MANY)
    assert found.tokens == expected
    assert loading.own()["vllm:num_preemptions"] > 0
    counted = loading.counted(ENGINE_TOKENS.name)
    assert counted["loaded"] >= SHARED
    assert counted.get("lost", 0) == 0


def test_a_part_that_is_stored_is_loaded(
    loading: Engine, prompts: Prompts, nursery: Nursery
) -> None:
    loading.reset()
    before = loading.counted(ENGINE_TOKENS.name)["loaded"]
    ids = prompts.branch(SHARED, 3)[:SHARED] + prompts.apart[1][:100]
    found = loading.generate(ids)
    assert found.cached == [SHARED]
    assert loading.counted(ENGINE_TOKENS.name)["loaded"] == before + SHARED
    loading.reset()
    assert loading.generate(ids).tokens == found.tokens


def test_prompts_of_other_lengths_than_pages(
    loading: Engine, prompts: Prompts, expected: list[list[int]]
) -> None:
    """Five pages are stored; of a prompt that ends with them a token is left, and whole blocks."""
    for tokens, loaded in ((SHARED, 288), (SHARED - 1, 256), (SHARED + 1, SHARED), (63, 0)):
        loading.reset()
        found = loading.generate(prompts.apart[0][:tokens], max_tokens=4)
        assert found.cached == [loaded], tokens


def test_salted_and_logprob_requests(
    loading: Engine, prompts: Prompts, expected: list[list[int]]
) -> None:
    """A salt finds nothing of others; prompt log-probabilities need the whole prompt."""
    loading.reset()
    ids = branches(prompts)[0]
    before = loading.counted(ENGINE_REQUESTS.name)
    salted = loading.generate(ids, max_tokens=MANY, prompt={"cache_salt": "mine"})
    assert (salted.tokens[0], salted.cached) == (expected[0], [0])
    whole = loading.generate(ids, max_tokens=4, params={"prompt_logprobs": 1})
    assert (whole.tokens[0], whole.cached) == (expected[0][:4], [0])
    after = loading.counted(ENGINE_REQUESTS.name)
    assert after["logprobs"] == before.get("logprobs", 0) + 1
    loading.settle()
    loading.reset()
    again = loading.generate(ids, max_tokens=4, prompt={"cache_salt": "mine"})
    assert again.cached == [384]


def test_after_a_reset_of_the_connector_nothing_is_found(
    loading: Engine, prompts: Prompts, expected: list[list[int]]
) -> None:
    loading.reset(reset_connector=True)
    found = loading.generate(branches(prompts)[1], max_tokens=MANY)
    assert (found.tokens[0], found.cached) == (expected[1], [0])
