"""Clients in a forked child, with the real services: they work, or fail at once; nothing hangs.

Each program prints a list, and the test says what it must be. A call that waited for its deadline
would give that as its reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from tests.support.forking import Programs, programs
from tests.support.services import Services, running_services

PRELUDE = """
import asyncio, json, os, sys, tempfile, threading
import torch
from lexico_client import AsyncClient, Client, InMemoryTransport
from lexico_proto.errors import LexicoError
from tests.support.client_fixtures import TOKENS, Landing, random_cache, small_spec, views_of
from tests.support.forking import in_child
from tests.support.waiting import PATIENCE_S

SPEC, FOLDER = small_spec(), tempfile.mkdtemp()
CACHE = random_cache(SPEC, 4)
BYTES = CACHE.numpy().tobytes()
RELOAD, OFFLOAD = sys.argv[1:]


def client():
    return Client(reload=RELOAD, offload=OFFLOAD, dictionaries_dir=FOLDER)


def load(of):
    landing = Landing(SPEC)
    loaded = of.load(SPEC, TOKENS, landing, timeout=PATIENCE_S)
    # Bytes, not torch.equal: torch must not work in the thread that forked.
    right = loaded.pages == 0 or landing.cache.numpy().tobytes() == BYTES
    return [loaded.pages, loaded.reason and loaded.reason.reason, right]


def offload(of):
    try:
        return list(of.offload(SPEC, TOKENS, views_of(SPEC, CACHE), timeout=PATIENCE_S).pages)
    except LexicoError as error:
        return error.reason


def store():
    with client() as first:
        offload(first)
"""

Printed = Callable[[str], Awaitable[Any]]
WORKS = [4, None, True]
REFUSED = [0, "unsupported", True]


@pytest.fixture(scope="module")
def run() -> Iterator[Programs]:
    with programs("torch", "lexico_client", "tests.support.client_fixtures") as run:
        yield run


@pytest.fixture
async def services() -> AsyncIterator[Services]:
    async with running_services() as running:
        yield running


@pytest.fixture
def printed(run: Programs, services: Services) -> Printed:
    """Runs a program against the services."""
    addresses = services.reload_address, services.offload_address
    return lambda program: asyncio.to_thread(run, PRELUDE + program, *addresses)


async def test_a_client_made_before_the_fork_works_in_the_child(printed: Printed) -> None:
    """A preloading web server: several workers, each with the client of the master."""
    program = """
shared = client()
first = in_child(lambda: [offload(shared), load(shared), shared.close()])
print(json.dumps([*first, in_child(lambda: load(shared)), load(shared)]))
"""
    assert await printed(program) == [["stored"] * 4, WORKS, None, WORKS, WORKS]


async def test_a_client_closed_before_the_fork_leaves_grpc_usable(printed: Printed) -> None:
    program = """
store()
print(json.dumps([in_child(lambda: load(client())) for _ in range(3)]))
"""
    assert await printed(program) == [WORKS] * 3


async def test_channels_of_the_parent_are_refused_at_once_and_stay_the_parents(
    printed: Printed,
) -> None:
    """Whatever the child does with the client, the parent's calls go on."""
    program = """
shared = client()
offload(shared)

def child():
    answers = [load(shared), offload(shared), load(client())]
    shared.close()
    return answers

def forgetful():
    global shared
    del shared  # and is collected

answers = []
for work in (child, forgetful, lambda: load(shared)):
    answers.append([in_child(work), load(shared)])
print(json.dumps(answers))
"""
    refused = [REFUSED, "unsupported", REFUSED]
    assert await printed(program) == [[refused, WORKS], [None, WORKS], [REFUSED, WORKS]]


async def test_an_async_client_in_the_child(printed: Printed) -> None:
    program = """
store()
shared = AsyncClient(reload=RELOAD, dictionaries_dir=FOLDER)

async def match():
    try:
        return (await shared.match(SPEC, TOKENS, timeout=PATIENCE_S)).pages
    except LexicoError as error:
        return error.reason

async def all_of_it():
    matched = await match()
    loaded = await shared.load(SPEC, TOKENS, Landing(SPEC), timeout=PATIENCE_S)
    answers = [matched, loaded.pages]
    await shared.close()
    return answers

before = in_child(lambda: asyncio.run(all_of_it()))
with asyncio.Runner() as runner:
    here = runner.run(match())
    after = in_child(lambda: asyncio.run(all_of_it()))
    again = runner.run(match())
print(json.dumps([before, here, after, again]))
"""
    assert await printed(program) == [[4, 4], 4, ["unsupported", 0], 4]


async def test_multiprocessing_forks_too(printed: Printed) -> None:
    program = """
import multiprocessing

store()
shared = client()
context = multiprocessing.get_context("fork")
results = context.SimpleQueue()
children = [context.Process(target=lambda: results.put(load(shared))) for _ in range(2)]
for child in children:
    child.start()
for child in children:
    child.join()
codes = [child.exitcode for child in children]
print(json.dumps(codes + [results.get() for code in codes if code == 0]))
"""
    assert await printed(program) == [0, 0, WORKS, WORKS]


async def test_calls_in_other_threads_at_the_moment_of_the_fork(printed: Printed) -> None:
    """Whatever locks they hold then, the child does not wait for them."""
    program = """
store()
forked, shared = threading.Event(), Client(transport=InMemoryTransport(), dictionaries_dir=FOLDER)
offload(shared)
os.register_at_fork(after_in_parent=forked.set)

def busy(begun):
    begun.wait()
    while not forked.is_set():
        load(shared)

def forks_while_busy():
    forked.clear()
    begun = threading.Barrier(5)
    threads = [threading.Thread(target=busy, args=(begun,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    answer = in_child(lambda: [load(shared), load(client())])
    for thread in threads:
        thread.join()
    return answer

print(json.dumps([forks_while_busy() for _ in range(8)]))
"""
    assert await printed(program) == [[WORKS, WORKS]] * 8
