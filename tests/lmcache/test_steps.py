"""Prompts that take many steps, are preempted, share a beginning, or end within a chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from lexico_proto.metrics import ENGINE_TOKENS
from tests.lmcache.conftest import CHUNKS, LOADED, MANY, plugin
from tests.support.engine_prompts import SHARED, Plain, Prompts
from tests.support.lmcache_pairs import Counted, Pair, Pairs
from tests.support.lmcache_server import SENT
from tests.support.vllm_service import EngineService

FOUND, LOST = (f"{ENGINE_TOKENS.name} {what}" for what in ("loaded", "lost"))
LONG: Final = 768
"""Tokens of the long prompt in whole chunks."""

SMALL: Final[dict[str, Any]] = {
    "max_num_batched_tokens": 128,
    "num_gpu_blocks_override": 34,
    "max_model_len": 1024,
}
"""Steps of 128 tokens, and blocks for 1,088: for two of the branches, but not for their answers."""


@pytest.fixture
def small(pairs: Pairs, service: EngineService, model: Path, stored: set[str]) -> Pair:
    """An engine whose server has nothing in its memory."""
    made = pairs.like(plugin(service, model), **SMALL)
    made.forget()
    return made


def preemptions(pair: Pair) -> int:
    """How often vLLM took the memory of a request for others."""
    return int(pair.engine.own()["vllm:num_preemptions"])


def test_concurrent_prompts_with_a_common_beginning_that_are_preempted(
    small: Pair, prompts: Prompts, plain: Plain
) -> None:
    """Computed and stored at first, with their beginning loaded; and then loaded."""
    for _ in range(2):
        counted, before = Counted(small.server), preemptions(small)
        found = small.engine.generate(*prompts.branches, max_tokens=MANY)
        assert (found.tokens, set(found.reasons)) == (plain.branches, {"length"})
        assert preemptions(small) > before
        assert counted.changes()[FOUND] >= SHARED
        assert counted.changes()[LOST] == 0
        small.forget()


def test_a_long_prompt_in_many_steps(small: Pair, prompts: Prompts, plain: Plain) -> None:
    for loaded in (LOADED, LONG):
        counted = Counted(small.server)
        found = small.engine.generate(prompts.long)
        assert (found.tokens[0], found.cached) == (plain.long, [loaded])
        assert counted.changes()[FOUND] == loaded
        small.hits_again(prompts.long, LONG)
        small.forget()


def test_prompts_of_other_lengths_than_chunks(small: Pair, prompts: Prompts, plain: Plain) -> None:
    """Of a prompt that ends with a chunk the last token is computed."""
    for tokens, loaded in ((SHARED, SHARED - 1), (SHARED - 1, 256), (SHARED + 1, SHARED), (63, 0)):
        small.forget()
        found = small.engine.generate(prompts.apart[0][:tokens], max_tokens=1)
        assert found.cached == [loaded], tokens
        assert found.tokens[0] == small.engine.generate(prompts.apart[0][:tokens]).tokens[0][:1]


def test_what_was_stored_with_a_salt_is_found_with_it(
    small: Pair, prompts: Prompts, plain: Plain
) -> None:
    salt, counted = {"cache_salt": "mine"}, Counted(small.server)
    for loaded in (0, LOADED):
        found = small.engine.generate(prompts.apart[1], prompt=salt)
        assert (found.tokens[0], found.cached) == (plain.apart[1], [loaded])
        counted.reach(SENT, CHUNKS)
        small.forget()
    assert small.engine.generate(prompts.apart[1]).cached == [LOADED]


def test_an_engine_with_a_cache_of_its_own(
    pairs: Pairs,
    service: EngineService,
    model: Path,
    prompts: Prompts,
    plain: Plain,
    stored: set[str],
) -> None:
    """As vLLM is started by default, behind a server that keeps what it loaded."""
    flags = ("--l2-prefetch-policy", "retain")
    pair = pairs.like(plugin(service, model), flags=flags, enable_prefix_caching=True, **SMALL)
    counted = Counted(pair.server)
    found = pair.engine.generate(*prompts.branches, max_tokens=MANY)
    assert found.tokens == plain.branches
    assert preemptions(pair) > 0
    assert counted.changes()[FOUND] >= SHARED
    assert counted.changes()[LOST] == 0
    pair.engine.generate(prompts.apart[2][:SHARED], max_tokens=1)
    whole = pair.engine.generate(prompts.apart[2])  # of which vLLM has the beginning
    assert (whole.tokens[0], whole.cached) == (plain.apart[2], [LOADED])
    pair.engine.generate(prompts.apart[1])  # in its place
    before = counted.changes()[FOUND]
    again = pair.engine.generate(prompts.apart[2])
    assert (again.tokens[0], again.cached) == (plain.apart[2], [LOADED])
    assert counted.changes()[FOUND] == before
