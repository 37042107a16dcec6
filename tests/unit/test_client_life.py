"""A call never waits beyond its deadline, whatever happens to its threads, its loop or its process.

The deadlines here must pass; `PATIENCE_S` is what would be waiting for ever.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lexico_client import AsyncClient, Client, InMemoryTransport, Loaded, _crew
from lexico_proto import errors
from tests.support.client_fixtures import (
    PATIENT,
    TOKENS,
    Landing,
    random_cache,
    small_spec,
    views_of,
)
from tests.support.forking import Programs, programs
from tests.support.sticking import Sticking, in_time
from tests.support.waiting import PATIENCE_S, wait_until

SPEC = small_spec()
CACHE = random_cache(SPEC, 4)
SOURCE = views_of(SPEC, CACHE)
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


def whole_load(client: Client) -> bool:
    landing = Landing(SPEC)
    loaded = client.load(SPEC, TOKENS, landing)
    return loaded.pages == 4 and torch.equal(landing.cache, CACHE)


def test_a_decode_that_does_not_end(
    client: Client, stuck: Sticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("lexico_client._load.decode_group", stuck)
        loaded: Loaded = in_time(lambda: client.load(SPEC, TOKENS, Landing(SPEC), timeout=SHORT))
    assert (loaded.pages, loaded.matched_pages) == (0, 4)
    assert type(loaded.reason) is errors.DeadlineExpired
    assert loaded.unfinished is not None
    assert not loaded.unfinished.is_set(), "a thread is in the memory"
    assert whole_load(client), "another thread has taken its place"
    stuck.let_go()
    assert loaded.unfinished.wait(PATIENCE_S)


def test_a_load_that_ends_well_leaves_nobody_in_the_memory(client: Client) -> None:
    assert client.load(SPEC, TOKENS, Landing(SPEC)).unfinished is None


@pytest.mark.parametrize("where", ["target", "view"])
def test_memory_that_is_not_given_in_time(client: Client, stuck: Sticking, where: str) -> None:
    def target(pages: int) -> Any:
        if where == "target":
            stuck()
        return lambda page, group: stuck()

    loaded = in_time(lambda: client.load(SPEC, TOKENS, target, timeout=SHORT))
    assert (loaded.pages, type(loaded.reason)) == (0, errors.DeadlineExpired)
    assert not loaded.unfinished.is_set()
    assert whole_load(client)


def test_a_source_that_does_not_end(client: Client, stuck: Sticking) -> None:
    def source(page: int, group: int) -> torch.Tensor:
        stuck()
        return SOURCE(page, group)

    other = [token + 1 for token in TOKENS]
    error = in_time(lambda: client.offload(SPEC, other, source, timeout=SHORT))
    assert type(error) is errors.DeadlineExpired
    assert whole_load(client)


def test_threads_that_are_stuck_are_bounded(
    client: Client, stuck: Sticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_crew, "MAX_STUCK", 2)
    with monkeypatch.context() as patch:
        patch.setattr("lexico_client._load.decode_group", stuck)
        reasons = [
            type(in_time(lambda: client.load(SPEC, TOKENS, Landing(SPEC), timeout=SHORT)).reason)
            for _ in range(3)
        ]
    assert reasons == [errors.DeadlineExpired, errors.DeadlineExpired, errors.Busy]
    stuck.let_go()
    wait_until(lambda: whole_load(client), "threads that are free again")


def test_closing_does_not_wait_for_a_thread_that_is_stuck(
    client: Client, stuck: Sticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = list[Loaded]()
    monkeypatch.setattr("lexico_client._load.decode_group", stuck)
    caller = threading.Thread(
        target=lambda: outcome.append(client.load(SPEC, TOKENS, Landing(SPEC), timeout=PATIENCE_S))
    )
    caller.start()
    assert stuck.inside.wait(PATIENCE_S)
    in_time(client.close)
    caller.join(PATIENCE_S)
    assert [loaded.pages for loaded in outcome] == [0]
    assert isinstance(outcome[0].reason, errors.Cancelled | errors.InternalError)
    assert outcome[0].unfinished is not None


def test_a_closed_client(client: Client) -> None:
    client.close()
    loaded = client.load(SPEC, TOKENS, Landing(SPEC))
    assert (loaded.pages, type(loaded.reason)) == (0, errors.Cancelled)
    for call in (client.match, lambda spec, ids: client.offload(spec, ids, SOURCE)):
        with pytest.raises(errors.Cancelled, match="closed"):
            call(SPEC, TOKENS)


async def test_a_closed_async_client(tmp_path: Path) -> None:
    client = AsyncClient(transport=InMemoryTransport(), dictionaries_dir=tmp_path)
    await client.offload(SPEC, TOKENS, SOURCE)
    await client.close()
    await client.close()
    loaded = await client.load(SPEC, TOKENS, Landing(SPEC))
    assert (loaded.pages, type(loaded.reason)) == (0, errors.Cancelled)
    with pytest.raises(errors.Cancelled, match="closed"):
        await client.match(SPEC, TOKENS)
    with pytest.raises(errors.Cancelled, match="closed"):
        await client.offload(SPEC, TOKENS, SOURCE)
    with pytest.raises(errors.Cancelled, match="closed"):
        await client.list_dictionaries()


async def test_inside_of_a_running_loop(tmp_path: Path) -> None:
    """As in a notebook."""
    with Client(
        transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        client.offload(SPEC, TOKENS, SOURCE)
        assert whole_load(client)


def test_a_load_from_within_its_own_loop_is_a_miss(tmp_path: Path) -> None:
    reasons = list[Any]()

    class Nosy(InMemoryTransport):
        async def match(self, request: object, timeout: float) -> object:  # type: ignore
            reasons.append(own.load(SPEC, TOKENS, Landing(SPEC)).reason)
            own.close()  # as a collected object may
            return await super().match(request, timeout)  # type: ignore[arg-type]

    own = Client(transport=Nosy(), dictionaries_dir=tmp_path, timeouts=PATIENT)  # type: ignore
    own.match(SPEC, TOKENS)
    assert [type(reason) for reason in reasons] == [errors.Unsupported]
    with pytest.raises(errors.Cancelled, match="closed"):
        own.match(SPEC, TOKENS)


def test_two_loops_one_after_another(tmp_path: Path) -> None:
    client = AsyncClient(transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT)
    asyncio.run(client.offload(SPEC, TOKENS, SOURCE))
    assert [asyncio.run(client.match(SPEC, TOKENS)).pages for _ in range(2)] == [4, 4]
    assert asyncio.run(client.load(SPEC, TOKENS, Landing(SPEC))).pages == 4


PRELUDE = """
import atexit, json, os, signal, sys, tempfile, threading, time
import torch
from lexico_client import Client, InMemoryTransport
from tests.support.client_fixtures import PATIENT, TOKENS, Landing
from tests.support.client_fixtures import random_cache, small_spec, views_of
from tests.support.forking import in_child

FOLDER = tempfile.mkdtemp()
SPEC = small_spec()
CACHE = random_cache(SPEC, 4)
client = Client(transport=InMemoryTransport(), dictionaries_dir=FOLDER, timeouts=PATIENT)

def load(**changes):
    landing = Landing(SPEC)
    loaded = client.load(SPEC, TOKENS, landing, **changes)
    return [loaded.pages, loaded.reason and loaded.reason.reason]

def offload():
    client.offload(SPEC, TOKENS, views_of(SPEC, CACHE))

def tell(*answers):
    print(json.dumps(answers), flush=True)

def hang(*arguments):
    threading.Event().wait()
"""

WHOLE = [4, None]


@pytest.fixture(scope="module")
def run() -> Iterator[Programs]:
    with programs("torch", "lexico_client", "tests.support.client_fixtures") as run:
        yield run


def test_a_thread_goes_on_while_the_interpreter_shuts_down(run: Programs) -> None:
    program = """
offload()

def later():
    threading.main_thread().join()
    tell(load(), load())

threading.Thread(target=later).start()
"""
    assert run(PRELUDE + program) == [WHOLE, WHOLE]


def test_a_thread_begins_with_it_while_the_interpreter_shuts_down(run: Programs) -> None:
    program = """
def later():
    threading.main_thread().join()
    offload()
    tell(load())

threading.Thread(target=later).start()
"""
    assert run(PRELUDE + program) == [WHOLE]


def test_at_exit(run: Programs) -> None:
    program = """
offload()
atexit.register(lambda: tell(load(), client.close(), load()))
"""
    assert run(PRELUDE + program) == [WHOLE, None, [0, "cancelled"]]


def test_an_object_that_is_collected_at_the_very_end(run: Programs) -> None:
    """The threads of its client do not run any more, and globals are gone."""
    program = """
offload()

class Last:
    def __init__(self):
        self.load, self.close, self.landing = client.load, client.close, Landing(SPEC)
        self.spec, self.tokens, self.ending = SPEC, TOKENS, sys.is_finalizing
        self.write, self.dumps = os.write, json.dumps

    def __del__(self):
        loaded = self.load(self.spec, self.tokens, self.landing)
        said = [self.ending(), loaded.pages, loaded.reason.reason, self.close()]
        self.write(1, self.dumps(said).encode())

last = Last()
"""
    assert run(PRELUDE + program) == [True, 0, "cancelled", None]


def test_a_thread_that_is_stuck_does_not_keep_the_process(run: Programs) -> None:
    program = """
import lexico_client._load
offload()
lexico_client._load.decode_group = hang
tell(load(timeout=0.3))
"""
    assert run(PRELUDE + program) == [[0, "deadline-expired"]]


def test_a_thread_that_is_stuck_in_a_forked_child(run: Programs) -> None:
    """As torch may be, where the parent had used its threads."""
    program = """
import lexico_client._load
offload()

def child():
    lexico_client._load.decode_group = hang
    return load(timeout=0.3)

tell(in_child(child), load())
"""
    assert run(PRELUDE + program) == [[0, "deadline-expired"], WHOLE]


def test_a_signal_handler_in_the_middle_of_a_call(run: Programs) -> None:
    """On the thread that waits, and holds whatever locks a call takes."""
    program = """
offload()
answers = []
signal.signal(signal.SIGALRM, lambda *_: answers.append(load()))
while len(answers) < 10:
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    answers.append(load())
with client._runner._lock, client._runner._loop._lock:
    signal.raise_signal(signal.SIGALRM)
tell(all(answer == [4, None] for answer in answers), answers[-1])
"""
    assert run(PRELUDE + program) == [True, WHOLE]
