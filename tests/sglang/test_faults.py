"""A service that is gone, silent, slow, full, cut off in the middle, or has damaged pages: requests
of a real SGLang engine finish as without us."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lexico_client.engines._hashed import hashed_pages
from lexico_client.engines.sglang._storage import SCHEME
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import ENGINE_PAGES, ENGINE_REQUESTS, ENGINE_TOKENS, SENT_BYTES, STREAMS
from lexico_services.auth import DEFAULT_TENANT
from lexico_store.scopes import tenant_scope
from tests.sglang.conftest import STORED, hits_again
from tests.support.engine_prompts import Plain, Prompts
from tests.support.sglang_engine import PAGE_TOKENS, Engine, Nursery
from tests.support.sglang_hashes import page_hashes
from tests.support.vllm_service import EngineService
from tests.support.waiting import wait_until

PAGES = STORED // PAGE_TOKENS
FAILED = f"{ENGINE_REQUESTS.name} failed"
LOST = f"{ENGINE_TOKENS.name} lost"
SENT, PRESENT, UNSENT = (f"{ENGINE_PAGES.name} {what}" for what in ("sent", "present", "failed"))


class Counted:
    """What an engine counted since."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._before = engine, engine.shown()

    def changes(self) -> Counter[str]:
        """What became more."""
        return self._engine.shown() - self._before


@pytest.fixture
def counted(engine: Engine) -> Counted:
    return Counted(engine)


def test_a_service_that_is_gone_costs_nothing_but_the_hit(
    engine: Engine,
    service: EngineService,
    prompts: Prompts,
    plain: Plain,
    counted: Counted,
    nursery: Nursery,
) -> None:
    service.reload.refuse()
    service.offload.refuse()
    try:
        found = engine.generate(*prompts.apart, prompts.spare[0])
        assert (found.tokens, found.cached) == ([*plain.apart, plain.spare[0]], [0] * 3)
        engine.flush()
    finally:
        service.reload.accept()
        service.offload.accept()
    assert counted.changes()[FAILED] >= 3
    assert counted.changes()[UNSENT] == 3 * PAGES
    for what in ("match", "store"):  # how often is a matter of time: the unit tests look at that
        assert f"{what} failed, the engine computes by itself" in nursery.said()
    hits_again(engine, prompts.apart[1])


def test_a_service_that_is_silent_costs_a_deadline(
    engine: Engine, service: EngineService, prompts: Prompts, plain: Plain, counted: Counted
) -> None:
    service.reload.swallows = True
    try:
        found = engine.generate(*prompts.apart)
    finally:
        service.reload.swallows = False
        service.reload.cut()
    assert (found.tokens, found.cached) == (plain.apart, [0] * 2)
    assert counted.changes()[FAILED] >= 2
    hits_again(engine, prompts.apart[1])


def test_a_slow_service_is_waited_for_as_long_as_the_policy_says(
    engine: Engine, service: EngineService, prompts: Prompts, plain: Plain
) -> None:
    """Whoever waits for all of it gets it. Whoever does not computes, and what comes later gets in
    nobody's way."""
    service.reload.delay_s = 0.01
    found = engine.generate(prompts.apart[0])
    assert (found.tokens[0], found.loaded[0]) == (plain.apart[0], STORED)
    engine.flush()
    engine.attach(policy="best_effort")
    try:
        found = engine.generate(prompts.apart[0])
        assert (found.tokens[0], found.cached) == (plain.apart[0], [0])
        found = engine.generate(*prompts.apart, prompts.spare[0])
        assert found.tokens == [*plain.apart, plain.spare[0]]
    finally:
        service.reload.delay_s = 0.0
        engine.attach()
    hits_again(engine, prompts.apart[0])


def test_a_service_that_dies_in_the_middle_of_a_load(
    engine: Engine, service: EngineService, prompts: Prompts, plain: Plain, counted: Counted
) -> None:
    sent = service.counts(SENT_BYTES)
    service.reload.delay_s = 0.02
    engine.begin(prompts.apart[0])
    wait_until(lambda: service.counts(STREAMS) or service.counts(SENT_BYTES) != sent, "a load")
    service.reload.refuse()
    found = engine.result()
    service.reload.accept()
    assert (found.tokens[0], found.reasons) == (plain.apart[0], ["length"])
    assert found.loaded[0] < STORED
    assert counted.changes()[LOST] > 0
    service.reload.delay_s = 0.0
    hits_again(engine, prompts.apart[0])


def test_a_damaged_page_is_computed(
    engine: Engine,
    service: EngineService,
    prompts: Prompts,
    plain: Plain,
    spec: CacheSpec,
    counted: Counted,
) -> None:
    """It leaves the store, and is stored anew."""
    name = page_hashes(prompts.apart[0], PAGE_TOKENS)[4]
    zeros, inputs = hashed_pages(SCHEME, [name], PAGE_TOKENS)
    service.damage(spec, zeros.tolist(), 0, inputs)
    found = engine.generate(prompts.apart[0])
    assert (found.tokens[0], found.reasons) == (plain.apart[0], ["length"])
    assert found.loaded[0] == 4 * PAGE_TOKENS
    assert counted.changes()[LOST] == STORED - 4 * PAGE_TOKENS
    hits_again(engine, prompts.apart[0])


def test_an_ingress_that_dies_in_the_middle_of_a_store(
    engine: Engine, service: EngineService, prompts: Prompts, plain: Plain, counted: Counted
) -> None:
    budget = service.services.ingress.budget
    service.offload.delay_s = 0.2
    engine.begin(prompts.spare[1])
    wait_until(lambda: budget.used, "a store")
    service.offload.refuse()
    found = engine.result()
    engine.flush()
    service.offload.accept()
    service.offload.delay_s = 0.0
    assert (found.tokens[0], found.reasons) == (plain.spare[1], ["length"])
    assert counted.changes()[UNSENT] > 0
    assert counted.changes()[UNSENT] + counted.changes()[SENT] == PAGES
    hits_again(engine, prompts.spare[1])


def test_an_ingress_that_has_no_room(
    engine: Engine,
    service: EngineService,
    prompts: Prompts,
    plain: Plain,
    spec: CacheSpec,
    counted: Counted,
) -> None:
    budget, limit = service.services.ingress.budget, service.services.ingress.budget.limit
    budget.limit = spec.page_bytes
    try:
        found = engine.generate(prompts.spare[2])
        engine.flush()
    finally:
        budget.limit = limit
    assert found.tokens[0] == plain.spare[2]
    changes = counted.changes()
    assert 0 < changes[UNSENT] < PAGES
    assert changes[UNSENT] + changes[SENT] == PAGES
    hits_again(engine, prompts.spare[2])
    assert counted.changes()[PRESENT] >= changes[SENT]


def test_a_tenant_over_its_quota(
    engine: Engine,
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
        found = engine.generate(prompts.spare[3])
        assert (found.tokens[0], found.cached) == (plain.spare[3], [0])
        engine.flush()
        hits_again(engine, prompts.apart[0])
    finally:
        allow(None)
    assert counted.changes()[UNSENT] == PAGES
    hits_again(engine, prompts.spare[3])


def test_an_engine_is_drained_by_taking_the_storage_away(
    engine: Engine, service: EngineService, prompts: Prompts, plain: Plain, counted: Counted
) -> None:
    """SGLang does not let go of it while pages are on their way: then all of them are stored."""
    service.offload.delay_s = 0.2
    engine.begin(prompts.spare[4])
    found = engine.result()
    assert found.tokens[0] == plain.spare[4]
    wait_until(engine.detach, "SGLang to be idle")
    service.offload.delay_s = 0.0
    try:
        changes = counted.changes()
        assert (changes[SENT], changes[UNSENT]) == (PAGES, 0)
        engine.flush()
        alone = engine.generate(prompts.spare[4])
        assert (alone.tokens, alone.cached) == (found.tokens, [0])
    finally:
        engine.attach()
    engine.flush()
    assert engine.generate(prompts.spare[4]).loaded[0] == STORED
