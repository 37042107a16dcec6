"""Prompts that take many steps, are preempted, come at once and begin alike."""

from __future__ import annotations

from lexico_proto.metrics import ENGINE_PAGES, ENGINE_TOKENS
from tests.lmcache.conftest import CHUNKS, MANY, SHARED, Plain, Running, Watched, forget
from tests.support.lmcache_server import CHUNK_TOKENS

PREEMPTIONS = "vllm:num_preemptions"


def test_concurrent_prompts_with_a_common_beginning_in_small_steps(
    fresh: Running, branches: list[list[int]], plain: Plain
) -> None:
    """First their beginning is in the service, then all of them."""
    server, engine = fresh
    own = [len(ids) // CHUNK_TOKENS - SHARED // CHUNK_TOKENS for ids in branches]
    for sent in (sum(own), 0):
        watched, preempted = Watched(server), engine.own()[PREEMPTIONS]
        found = engine.generate(*branches, max_tokens=MANY)
        assert found.tokens == plain.branches
        assert engine.own()[PREEMPTIONS] > preempted
        server.settle()
        assert watched.grew(ENGINE_PAGES, "sent") >= sent
        assert watched.grew(ENGINE_TOKENS, "loaded") >= (SHARED if sent else SHARED + sum(own) * 64)
        assert watched.grew(ENGINE_TOKENS, "lost") == 0
        forget(server)


def test_a_prompt_of_many_steps_is_stored_whole(
    fresh: Running, prompts: list[list[int]], plain: Plain
) -> None:
    server, engine = fresh
    salt = {"cache_salt": "mine"}
    watched = Watched(server)
    found = engine.generate(prompts[1], prompt=salt)
    assert (found.tokens[0], found.cached) == (plain.prompts[1], [0])
    server.settle()
    assert watched.grew(ENGINE_PAGES, "sent") == CHUNKS
    forget(server)
    again = engine.generate(prompts[1], prompt=salt)
    assert (again.tokens[0], again.cached) == (plain.prompts[1], [CHUNKS * CHUNK_TOKENS])
    assert watched.grew(ENGINE_TOKENS, "loaded") == CHUNKS * CHUNK_TOKENS
