"""A service that is gone, silent, slow, full, cut off in the middle, or has damaged objects:
requests of a vLLM engine behind LMCache's server finish as without us."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from lexico_proto.metrics import (
    ENGINE_PAGES,
    ENGINE_REQUESTS,
    ENGINE_TOKENS,
    RECEIVED_BYTES,
    SENT_BYTES,
    STREAMS,
)
from lexico_services.auth import DEFAULT_TENANT
from lexico_store.scopes import tenant_scope
from tests.lmcache.conftest import CHUNKS, LOADED
from tests.support.client_fixtures import flipped
from tests.support.engine_prompts import SHARED, Plain, Prompts
from tests.support.lmcache_pairs import Counted, Pair
from tests.support.lmcache_server import CHUNK_TOKENS, SENT
from tests.support.vllm_service import EngineService
from tests.support.waiting import wait_until

FAILED = f"{ENGINE_REQUESTS.name} failed"
FOUND, LOST = (f"{ENGINE_TOKENS.name} {what}" for what in ("loaded", "lost"))
UNSENT, PRESENT = (f"{ENGINE_PAGES.name} {what}" for what in ("failed", "present"))
SHORT_TOKENS: Final = 40
"""Of a prompt without a whole chunk: nobody is asked for it."""


@pytest.fixture
def counted(pair: Pair) -> Counted:
    return Counted(pair.server)


def test_a_service_that_is_gone_costs_nothing_but_the_hit(
    pair: Pair, service: EngineService, prompts: Prompts, plain: Plain, counted: Counted
) -> None:
    service.reload.refuse()
    service.offload.refuse()
    try:
        found = pair.engine.generate(*prompts.apart, prompts.spare[0])
        assert (found.tokens, found.cached) == ([*plain.apart, plain.spare[0]], [0] * 4)
        counted.reach(UNSENT, 4 * CHUNKS)
    finally:
        service.reload.accept()
        service.offload.accept()
    changes = counted.changes()
    assert (changes[FAILED], changes[UNSENT], changes[SENT]) == (4, 4 * CHUNKS, 0)
    for what in ("match", "store"):
        assert pair.warnings(what)
    pair.hits_again(prompts.apart[1], LOADED)


def test_a_service_that_is_silent_costs_a_deadline(
    pair: Pair, service: EngineService, prompts: Prompts, plain: Plain, counted: Counted
) -> None:
    service.reload.swallows = True
    try:
        found = pair.engine.generate(*prompts.apart)
    finally:
        service.reload.swallows = False
        service.reload.cut()
    assert (found.tokens, found.cached) == (plain.apart, [0] * len(plain.apart))
    assert counted.changes()[FAILED] == len(plain.apart)
    pair.hits_again(prompts.apart[1], LOADED)


def test_a_slow_service_is_waited_for_and_holds_nobody_else_up(
    pair: Pair, service: EngineService, prompts: Prompts, plain: Plain, counted: Counted
) -> None:
    """A prompt that is computed comes while another is loaded, and is answered first."""
    short = prompts.spare[1][:SHORT_TOKENS]
    alone = pair.engine.generate(short, max_tokens=1)
    service.reload.delay_s = 0.05
    found = pair.engine.generate(prompts.apart[0], short, max_tokens=1)
    assert found.tokens == [plain.apart[0][:1], alone.tokens[0]]
    assert found.cached == [LOADED, 0]
    assert found.first[1] < found.first[0]
    assert (counted.changes()[FOUND], counted.changes()[LOST]) == (LOADED, 0)


def test_a_service_that_dies_in_the_middle_of_a_load(
    pair: Pair, service: EngineService, prompts: Prompts, plain: Plain, counted: Counted
) -> None:
    sent = service.counts(SENT_BYTES)
    service.reload.delay_s = 0.02
    pair.engine.begin(prompts.apart[2])
    wait_until(lambda: service.counts(STREAMS) or service.counts(SENT_BYTES) != sent, "a load")
    service.reload.refuse()
    found = pair.engine.result()
    service.reload.accept()
    assert (found.tokens[0], found.reasons) == (plain.apart[2], ["length"])
    assert found.cached[0] < LOADED
    assert counted.changes()[LOST] > 0
    assert pair.warnings("load")
    service.reload.delay_s = 0.0
    pair.hits_again(prompts.apart[2], LOADED)


def test_an_ingress_that_dies_in_the_middle_of_a_store(
    pair: Pair, service: EngineService, prompts: Prompts, plain: Plain, counted: Counted
) -> None:
    """It loses that store alone, and whoever computes the prompt again stores what is missing."""
    received = service.counts(RECEIVED_BYTES)
    service.offload.upload_delay_s = 0.01
    pair.engine.begin(prompts.spare[1])
    wait_until(lambda: service.counts(RECEIVED_BYTES) != received, "an object to be received")
    service.offload.refuse()
    found = pair.engine.result()
    pair.server.settle()
    service.offload.accept()
    service.offload.upload_delay_s = 0.0
    assert (found.tokens[0], found.reasons) == (plain.spare[1], ["length"])
    changes = counted.changes()
    assert changes[UNSENT] > 0
    # What was received and not answered is found to be there.
    assert changes[UNSENT] + changes[SENT] + changes[PRESENT] == CHUNKS
    assert pair.server.adapter()["held_bytes"] == 0
    pair.hits_again(prompts.spare[1], LOADED)


def test_a_damaged_object_is_computed_and_stored_anew(
    pair: Pair, service: EngineService, prompts: Prompts, plain: Plain, counted: Counted
) -> None:
    """LMCache uses the chunks before it."""
    ids = prompts.spare[2]
    pair.engine.generate(ids[:SHARED], max_tokens=1)
    counted.reach(SENT, SHARED // CHUNK_TOKENS)
    before = set(service.store._pages)
    pair.engine.generate(ids[: SHARED + CHUNK_TOKENS], max_tokens=1)
    counted.reach(SENT, SHARED // CHUNK_TOKENS + 1)
    (sixth,) = set(service.store._pages) - before
    pair.engine.generate(ids, max_tokens=1)
    counted.reach(SENT, CHUNKS)
    entry = service.store._pages[sixth]
    frames = (*entry.frames[:-1], flipped(entry.frames[-1]))
    service.store._pages[sixth] = type(entry)(frames, entry.expires_s)
    pair.forget()
    found = pair.engine.generate(ids)
    assert (found.tokens[0], found.cached) == (plain.spare[2], [SHARED])
    changes = counted.changes()
    assert (changes[FOUND], changes[LOST]) == (LOADED - CHUNK_TOKENS, CHUNK_TOKENS)
    pair.hits_again(ids, LOADED)


def test_an_ingress_that_has_no_room(
    pair: Pair, service: EngineService, prompts: Prompts, plain: Plain, counted: Counted
) -> None:
    budget, limit = service.services.ingress.budget, service.services.ingress.budget.limit
    budget.limit = 1
    try:
        found = pair.engine.generate(prompts.spare[3])
        counted.reach(UNSENT, CHUNKS)
    finally:
        budget.limit = limit
    assert found.tokens[0] == plain.spare[3]
    assert counted.changes()[SENT] == 0
    pair.hits_again(prompts.spare[3], LOADED)


def test_a_tenant_over_its_quota(
    pair: Pair,
    service: EngineService,
    prompts: Prompts,
    plain: Plain,
    policy_file: Path,
    counted: Counted,
) -> None:
    """Nothing more is stored. What is there is found."""

    def allow(size: int | None) -> None:
        policy_file.write_text("[default]\n" + (f"max_stored_bytes = {size}\n" if size else ""))
        policies, scope = service.services.ingress._policies, tenant_scope(DEFAULT_TENANT)
        wait_until(lambda: policies.of(scope).max_stored_bytes == size, "the policy to be read")

    allow(1)
    try:
        found = pair.engine.generate(prompts.spare[4])
        counted.reach(UNSENT, CHUNKS)
        pair.hits_again(prompts.apart[0], LOADED)
    finally:
        allow(None)
    assert (found.tokens[0], found.cached) == (plain.spare[4], [0])
    changes = counted.changes()
    assert (changes[UNSENT], changes[SENT]) == (CHUNKS, 0)
    pair.hits_again(prompts.spare[4], LOADED)
