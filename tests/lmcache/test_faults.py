"""A service that is gone, slow, silent, cut off in the middle, full or restarted, or has damaged
pages: requests finish as without us."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from lexico_proto.metrics import (
    ENGINE_PAGES,
    ENGINE_REQUESTS,
    ENGINE_TOKENS,
    SENT_BYTES,
    STREAMS,
)
from tests.lmcache.conftest import CHUNKS, LOADED, Plain, Running, Watched, forget, hits_again
from tests.support.client_fixtures import flipped
from tests.support.restarting_service import RestartingService, restarting_service
from tests.support.vllm_service import EngineService
from tests.support.waiting import wait_until

KINDS = ("match", "load", "store")


@pytest.fixture(autouse=True)
def recovered(service: EngineService) -> Iterator[None]:
    yield
    service.reload.delay_s = 0.0


def test_a_damaged_object_is_computed(
    fresh: Running, service: EngineService, prompts: list[list[int]], plain: Plain
) -> None:
    server, engine = fresh
    watched, whole = Watched(server), dict(service.store._pages)
    for name, entry in whole.items():
        frames = (*entry.frames[:-1], flipped(entry.frames[-1]))
        service.store._pages[name] = type(entry)(frames, entry.expires_s)
    found = engine.generate(prompts[1])
    assert (found.tokens[0], found.reasons) == (plain.prompts[1], ["length"])
    assert watched.grew(ENGINE_TOKENS, "lost") > 0
    service.store._pages.update(whole)


def test_a_service_that_is_slow_is_waited_for(
    fresh: Running, service: EngineService, prompts: list[list[int]], plain: Plain
) -> None:
    service.reload.delay_s = 0.005
    found = fresh[1].generate(prompts[0])
    assert (found.tokens[0], found.cached) == (plain.prompts[0], [LOADED])


def test_a_service_that_is_gone_costs_nothing_but_the_hit(
    fresh: Running, service: EngineService, prompts: list[list[int]], plain: Plain
) -> None:
    server, engine = fresh
    watched = Watched(server)
    service.reload.refuse()
    service.offload.refuse()
    try:
        found = [engine.generate(ids) for ids in prompts]
        server.settle()
    finally:
        service.reload.accept()
        service.offload.accept()
    assert [each.tokens[0] for each in found] == plain.prompts
    assert found[1].cached == [0]
    assert watched.grew(ENGINE_REQUESTS, "failed") == len(prompts)
    assert watched.grew(ENGINE_PAGES, "failed") >= len(prompts) * (CHUNKS - 4)
    assert all(watched.warnings(kind) <= 1 for kind in KINDS)
    hits_again(fresh, prompts[2])


def test_a_service_that_is_silent_costs_a_deadline(
    fresh: Running, service: EngineService, prompts: list[list[int]], plain: Plain
) -> None:
    server, engine = fresh
    watched = Watched(server)
    service.reload.swallows = True
    try:
        found = engine.generate(*prompts[:3])
    finally:
        service.reload.swallows = False
        service.reload.cut()
    assert (found.tokens, found.cached) == (plain.prompts[:3], [0] * 3)
    assert watched.grew(ENGINE_REQUESTS, "failed") == 3
    assert watched.warnings("match") <= 1
    hits_again(fresh, prompts[1])


def test_a_service_that_dies_in_the_middle_of_a_load(
    fresh: Running, service: EngineService, prompts: list[list[int]], plain: Plain
) -> None:
    server, engine = fresh
    watched, sent = Watched(server), service.counts(SENT_BYTES)
    service.reload.delay_s = 0.02
    engine.begin(prompts[2])
    wait_until(lambda: service.counts(STREAMS) or service.counts(SENT_BYTES) != sent, "a load")
    service.reload.refuse()
    found = engine.result()
    service.reload.accept()
    assert (found.tokens[0], found.reasons) == (plain.prompts[2], ["length"])
    assert watched.grew(ENGINE_TOKENS, "lost") > 0
    service.reload.delay_s = 0.0
    hits_again(fresh, prompts[2])


@pytest.fixture(scope="module")
def serving(
    tmp_path_factory: pytest.TempPathFactory, service: EngineService
) -> Iterator[RestartingService]:
    """A whole `lexico serve` in place of the other service, at its addresses."""
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
def filled(
    running: Running, serving: RestartingService, prompts: list[list[int]]
) -> RestartingService:
    """Two prompts are in its store, and not in the server's memory."""
    for ids in prompts[:2]:
        hits_again(running, ids)
    forget(running[0])
    return serving


def test_a_service_that_drains_under_load_and_starts_again(
    running: Running, filled: RestartingService, prompts: list[list[int]], plain: Plain
) -> None:
    server, engine = running
    run = filled.run
    assert run is not None
    filled.reload.delay_s = 0.01
    given = filled.given()
    engine.begin(*prompts[:2])
    wait_until(lambda: filled.given() > given + (1 << 20), "a load that is under way")
    run.process.send_signal(signal.SIGTERM)
    found = engine.result()
    assert (found.tokens, found.reasons) == (plain.prompts[:2], ["length"] * 2)
    assert run.end_of() == 0
    filled.reload.delay_s = 0.0

    forget(server)
    watched = Watched(server)
    away = engine.generate(prompts[0])
    assert (away.tokens[0], away.cached) == (plain.prompts[0], [0])
    assert watched.grew(ENGINE_REQUESTS, "failed") == 1

    filled.start()
    for ids in prompts[:2]:
        hits_again(running, ids)
    forget(server)
    again = engine.generate(*prompts[:2])
    assert (again.tokens, again.cached) == (plain.prompts[:2], [LOADED] * 2)


def test_a_store_that_is_full_takes_no_objects_and_gives_those_that_it_has(
    running: Running, filled: RestartingService, prompts: list[list[int]], plain: Plain
) -> None:
    server, engine = running
    watched = Watched(server)
    filled.bound(1 << 20)
    try:
        found = engine.generate(prompts[2])
        forget(server)
        stored = engine.generate(prompts[0])
    finally:
        filled.bound(None)
    assert (found.tokens[0], found.cached) == (plain.prompts[2], [0])
    assert (stored.tokens[0], stored.cached) == (plain.prompts[0], [LOADED])
    assert watched.grew(ENGINE_PAGES, "failed") >= CHUNKS - 1
    assert watched.grew(ENGINE_TOKENS, "lost") == 0
    assert watched.warnings("store") <= 1
    hits_again(running, prompts[2])
