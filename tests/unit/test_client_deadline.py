"""The deadline is the caller's: it begins with the call, and nothing the caller gave is waited for
behind it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lexico_client import AsyncClient, Client, InMemoryTransport, _crew, _loop_thread
from lexico_proto import errors
from tests.support.client_fixtures import (
    PATIENT,
    TOKENS,
    Landing,
    random_cache,
    small_spec,
    views_of,
)
from tests.support.sticking import Sticking, in_time
from tests.support.waiting import PATIENCE_S, wait_until

SPEC = small_spec()
SOURCE = views_of(SPEC, random_cache(SPEC, 4))
SHORT = 0.3
"""A deadline that passes."""


@pytest.fixture
def stuck() -> Iterator[Sticking]:
    sticking = Sticking()
    yield sticking
    sticking.let_go()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    client = Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT)
    client.offload(SPEC, TOKENS, SOURCE)
    yield client
    client.close()


@pytest.mark.parametrize("where", ["target", "view", "decode", "source"])
def test_a_call_ends_at_its_deadline_and_not_after_it(
    client: Client, stuck: Sticking, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """With graces that do not end, nothing may wait for one."""
    monkeypatch.setattr(_crew, "GRACE_SECONDS", 2 * PATIENCE_S)
    monkeypatch.setattr(_loop_thread, "GRACE_SECONDS", 2 * PATIENCE_S)

    def target(pages: int) -> Any:
        if where == "target":
            stuck()
        return view if where == "view" else Landing(SPEC)(pages)

    def view(page: int, group: int) -> torch.Tensor:
        stuck()
        raise AssertionError("let go after the call")

    if where == "decode":
        monkeypatch.setattr("lexico_client._load.decode_group", stuck)
    if where == "source":
        other = [token + 1 for token in TOKENS]
        ended = in_time(lambda: client.offload(SPEC, other, view, timeout=SHORT))
    else:
        ended = in_time(lambda: client.load(SPEC, TOKENS, target, timeout=SHORT)).reason
    assert type(ended) is errors.DeadlineExpired


def test_memory_that_comes_late_is_not_used_and_not_kept(client: Client, stuck: Sticking) -> None:
    memory, calls = list[weakref.ref[Landing]](), list[object]()

    def target(pages: int) -> Any:
        landing = Landing(SPEC)
        memory.append(weakref.ref(landing))
        view = landing(pages)
        stuck()

        def late(*place: int) -> torch.Tensor:
            calls.append(place)
            return view(*place)

        return late

    loaded = in_time(lambda: client.load(SPEC, TOKENS, target, timeout=SHORT))
    assert (loaded.pages, type(loaded.reason)) == (0, errors.DeadlineExpired)
    stuck.let_go()
    assert loaded.unfinished.wait(PATIENCE_S)

    def gone() -> bool:
        gc.collect()
        return memory[0]() is None

    wait_until(gone, "memory that is given back")
    assert not calls


def test_a_worker_keeps_nothing_of_what_it_has_done() -> None:
    """The next job may never come."""
    crew, made = _crew.Crew(1), list[weakref.ref[Landing]]()

    def work() -> Landing:
        landing = Landing(SPEC)
        made.append(weakref.ref(landing))
        return landing

    with crew.one() as worker:
        assert worker.submit(work).result(PATIENCE_S) is not None
        wait_until(lambda: made[0]() is None, "a result that nobody keeps")
    crew.close()


async def test_a_call_that_is_cancelled_waits_for_its_thread(
    tmp_path: Path, stuck: Sticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no result that could say that a thread is in the memory."""
    monkeypatch.setattr(_crew, "GRACE_SECONDS", PATIENCE_S)
    client = AsyncClient(transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT)
    await client.offload(SPEC, TOKENS, SOURCE)
    monkeypatch.setattr("lexico_client._load.decode_group", stuck)
    load = asyncio.create_task(client.load(SPEC, TOKENS, Landing(SPEC), timeout=SHORT))
    await asyncio.to_thread(stuck.inside.wait, PATIENCE_S)
    load.cancel()
    async with asyncio.timeout(PATIENCE_S):
        while not client._crew._stuck:  # past the deadline
            await asyncio.sleep(0.01)
    load.cancel()
    await asyncio.sleep(0.05)
    assert not load.done()
    assert not stuck.left
    stuck.let_go()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert stuck.left
    await client.close()
