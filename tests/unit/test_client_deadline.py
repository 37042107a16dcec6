"""The deadline is the caller's: it begins with the call, and nothing the caller gave is waited for
behind it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lexico_client import AsyncClient, Client, InMemoryTransport, _crew, _loop_thread
from lexico_client._deadline import Budget
from lexico_client._ids import AT_ONCE, ids_of
from lexico_codec.keys import token_array
from lexico_proto import errors
from lexico_proto.metrics import CLIENT_MISSES, Metrics
from tests.support.client_fixtures import (
    PATIENT,
    TOKENS,
    Landing,
    random_cache,
    small_spec,
    views_of,
)
from tests.support.sticking import Sticking, in_time
from tests.support.waiting import PATIENCE_S, until, wait_until

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
    await until(lambda: client._crew._stuck, "the end of the deadline")
    load.cancel()
    for _ in range(100):  # turns of the loop, in which it could end
        await asyncio.sleep(0)
    assert not load.done()
    assert not stuck.left
    stuck.let_go()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert stuck.left
    await client.close()


class Slow(Sequence[int]):
    """Token ids that are slow to be had: code of the caller's."""

    def __init__(self, wait: Callable[[], None], tokens: Sequence[int] = TOKENS) -> None:
        self._wait = wait
        self._tokens = tokens

    @classmethod
    def of(cls, tokens: Sequence[int]) -> Slow:
        return cls(lambda: None, tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: Any) -> Any:
        self._wait()
        return self._tokens[index]


def test_token_ids_that_do_not_come(tmp_path: Path, stuck: Sticking) -> None:
    metrics = Metrics()
    client = Client(
        transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT, metrics=metrics
    )
    ids = Slow(stuck)
    loaded = in_time(lambda: client.load(SPEC, ids, Landing(SPEC), timeout=SHORT))
    assert (loaded.pages, type(loaded.reason)) == (0, errors.DeadlineExpired)
    assert metrics.counter(CLIENT_MISSES, "deadline-expired").number == 1
    for call in (
        lambda: client.match(SPEC, ids, timeout=SHORT),
        lambda: client.explain(SPEC, ids, timeout=SHORT),
        lambda: client.offload(SPEC, ids, SOURCE, timeout=SHORT),
    ):
        assert type(in_time(call)) is errors.DeadlineExpired
    client.offload(SPEC, TOKENS, SOURCE)
    assert client.match(SPEC, TOKENS).pages == 4, "the loop goes on"
    stuck.let_go()
    assert client.match(SPEC, Slow.of(TOKENS)).pages == 4
    client.close()


@pytest.mark.parametrize(
    "kind", [list, tuple, np.array, partial(array, "I"), torch.tensor, Slow.of]
)
@pytest.mark.parametrize("tokens", [0, 7, AT_ONCE, 2 * AT_ONCE + 1])
async def test_token_ids_of_every_kind(
    kind: Callable[[Sequence[int]], Any], tokens: int, tmp_path: Path
) -> None:
    ids = [(7 * place) % 50021 for place in range(tokens)]
    crew = _crew.Crew(1)
    made = await ids_of(kind(ids), crew, Budget("test", PATIENCE_S))
    np.testing.assert_array_equal(made, token_array(ids))
    assert made.dtype == np.dtype("<u4")
    crew.close()


@pytest.mark.parametrize("bad", [1.5, -1, 1 << 32, "seven", [1, 2]])
async def test_one_id_of_many_that_is_none(bad: object) -> None:
    ids: Any = [1] * (AT_ONCE + 5)
    ids[AT_ONCE + 2] = bad
    with pytest.raises(errors.TokenCountMismatch):
        await ids_of(ids, _crew.Crew(1), Budget("test", PATIENCE_S))


async def test_a_list_that_is_changed_meanwhile() -> None:
    ids = list(range(3 * AT_ONCE))
    begun = asyncio.create_task(ids_of(ids, _crew.Crew(1), Budget("test", PATIENCE_S)))
    await asyncio.sleep(0)
    ids[:] = [0] * len(ids)
    assert (await begun).tolist() == list(range(3 * AT_ONCE))


async def test_the_budget_begins_with_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What converting takes is gone for the rest: hashing, here, ends at once."""
    client = AsyncClient(transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT)
    await client.offload(SPEC, TOKENS, SOURCE)
    hashed = list[object]()

    def hash_part(*arguments: object, **others: object) -> list[bytes]:
        hashed.append(arguments)
        return []

    monkeypatch.setattr("lexico_client._parts.page_keys", hash_part)

    async def late(*arguments: Any) -> Any:
        while asyncio.get_running_loop().time() < arguments[-1].end:
            await asyncio.sleep(0)
        return token_array(TOKENS * 10_000)

    monkeypatch.setattr("lexico_client._async_client.ids_of", late)
    loaded = await client.load(SPEC, TOKENS, Landing(SPEC), timeout=SHORT)
    assert (loaded.pages, type(loaded.reason)) == (0, errors.DeadlineExpired)
    assert loaded.seconds.total >= SHORT
    assert len(hashed) <= 1, "hashing goes on beyond the deadline"
    await client.close()
