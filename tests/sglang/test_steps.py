"""Prompts that take many steps, are preempted, share a beginning, or end within a page."""

from __future__ import annotations

from typing import Any, Final

import pytest

from lexico_proto.metrics import ENGINE_TOKENS
from tests.sglang.conftest import MANY, STORED
from tests.support.engine_prompts import SHARED, Plain, Prompts
from tests.support.sglang_engine import Engine, Engines, Nursery
from tests.support.vllm_service import EngineService

LOADED, LOST = (f"{ENGINE_TOKENS.name} {what}" for what in ("loaded", "lost"))
LONG: Final = 704
"""Tokens of the long prompt in full pages."""

SMALL: Final[dict[str, Any]] = {
    "chunked_prefill_size": 128,
    "max_total_tokens": 896,
    "schedule_conservativeness": 0.01,
    "hicache_ratio": 5.0,
}
"""Steps of 128 tokens, and 14 pages: for three of the branches, but not for their answers, which
SGLang does not expect to be long. A prompt may have 12 of them: SGLang cuts the answer of a longer
one, down to nothing."""


@pytest.fixture
def small(engines: Engines, service: EngineService, stored: None) -> Engine:
    """An engine that has nothing."""
    extra = {**service.settings, "codec": "lossless", "prefetch_threshold": 64}
    made = engines.like(extra, **SMALL)
    made.flush()
    return made


def retractions(nursery: Nursery) -> int:
    """How often SGLang took the memory of a request for others."""
    return nursery.said().count("KV cache pool is full. Retract requests.")


def test_concurrent_prompts_with_a_common_beginning_that_are_preempted(
    small: Engine, prompts: Prompts, plain: Plain, nursery: Nursery
) -> None:
    """Computed and stored at first, with their beginning loaded, and preempted; and then loaded: as
    SGLang reserves more for what it loads, it may admit fewer of them at a time."""
    retracted = retractions(nursery)
    for _ in range(2):
        before = small.shown()
        found = small.generate(*prompts.branches, max_tokens=MANY)
        assert (found.tokens, set(found.reasons)) == (plain.branches, {"length"})
        assert retractions(nursery) > retracted
        changes = small.shown() - before
        assert changes[LOADED] >= SHARED
        assert changes[LOST] == 0
        small.flush()


def test_a_long_prompt_in_many_steps(small: Engine, prompts: Prompts, plain: Plain) -> None:
    found = small.generate(prompts.long)
    assert (found.tokens[0], found.loaded[0]) == (plain.long, STORED)
    small.flush()
    found = small.generate(prompts.long)
    assert (found.tokens[0], found.loaded[0]) == (plain.long, LONG)


def test_prompts_of_other_lengths_than_pages(small: Engine, prompts: Prompts) -> None:
    """Of a prompt that ends with a page the last token is left, and so is the page."""
    for tokens, loaded in ((SHARED, 256), (SHARED - 1, 256), (SHARED + 1, SHARED), (63, 0)):
        small.flush()
        found = small.generate(prompts.apart[0][:tokens], max_tokens=1)
        assert found.loaded[0] == loaded, tokens


def test_what_was_stored_with_a_salt_is_found_with_it(
    small: Engine, prompts: Prompts, plain: Plain
) -> None:
    for loaded in (0, STORED):
        found = small.generate(prompts.apart[1], cache_salt="mine")
        assert found.tokens[0] == plain.apart[1]
        assert found.loaded[0] == loaded
        small.flush()
    assert small.generate(prompts.apart[1]).loaded[0] == STORED
