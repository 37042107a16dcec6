"""The synchronous face: several threads, one loop, nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lexico_client import Client, InMemoryTransport
from lexico_proto import errors
from tests.support.client_fixtures import (
    PATIENT,
    TOKENS,
    Landing,
    random_cache,
    small_dictionary,
    small_spec,
    views_of,
)
from tests.support.waiting import PATIENCE_S

SPEC = small_spec()


def client_threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith("lexico-client")}


@pytest.fixture
def others() -> set[threading.Thread]:
    """Of clients that another file's tests have left open in this process."""
    return client_threads()


def test_round_trip_and_no_thread_left(tmp_path: Path, others: set[threading.Thread]) -> None:
    cache, landing, dictionary = random_cache(SPEC, 4), Landing(SPEC), small_dictionary()
    with Client(
        transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        assert client.match(SPEC, TOKENS).pages == 0
        assert client.offload(SPEC, TOKENS, views_of(SPEC, cache)).pages == ("stored",) * 4
        assert client.load(SPEC, TOKENS, landing).pages == 4
        assert client.register_dictionary(dictionary)
        client.keep_dictionary(dictionary)
        assert client.fetch_dictionary(dictionary.digest) is dictionary
        assert [entry.digest for entry in client.list_dictionaries()] == [dictionary.digest]
        assert client_threads() - others
    assert torch.equal(landing.cache, cache)
    assert client_threads() <= others


def test_errors_are_the_async_clients(tmp_path: Path) -> None:
    with Client(
        transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        with pytest.raises(errors.UnknownDictionary):
            client.fetch_dictionary(bytes(32))
        with pytest.raises(ZeroDivisionError):
            client.offload(SPEC, TOKENS, lambda page, group: torch.ones(1 // 0))


def test_several_threads(tmp_path: Path) -> None:
    def work(seed: int) -> bool:
        tokens = [token + 1000 * seed for token in TOKENS]
        cache, landing = random_cache(SPEC, 4, seed), Landing(SPEC)
        client.offload(SPEC, tokens, views_of(SPEC, cache))
        client.load(SPEC, tokens, landing)
        return torch.equal(landing.cache, cache)

    with Client(
        transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(24)))


def test_closed_twice_and_used_afterwards(tmp_path: Path) -> None:
    client = Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT)
    closers = [threading.Thread(target=client.close) for _ in range(4)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
    client.close()
    with pytest.raises(errors.Cancelled, match="closed"):
        client.match(SPEC, TOKENS)


def test_closing_ends_a_call_in_another_thread(
    tmp_path: Path, others: set[threading.Thread]
) -> None:
    inside, outcome = threading.Event(), list[BaseException]()

    class Waiting(InMemoryTransport):
        async def match(self, request: object, timeout: float) -> object:  # type: ignore
            import asyncio

            inside.set()
            await asyncio.sleep(timeout)
            raise AssertionError

    client = Client(transport=Waiting(), dictionaries_dir=tmp_path, timeouts=PATIENT)  # type: ignore[arg-type]

    def call() -> None:
        try:
            client.match(SPEC, TOKENS, timeout=PATIENCE_S)
        except errors.LexicoError as error:
            outcome.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    assert inside.wait(PATIENCE_S)
    client.close()
    caller.join(PATIENCE_S)
    assert [type(error) for error in outcome] == [errors.Cancelled]
    assert client_threads() <= others


def test_it_cannot_wait_for_itself(tmp_path: Path) -> None:
    caught: list[str] = []

    class Nosy(InMemoryTransport):
        async def match(self, request: object, timeout: float) -> object:  # type: ignore
            try:
                client.match(SPEC, TOKENS)
            except errors.Unsupported as error:
                caught.append(str(error))
            return await super().match(request, timeout)  # type: ignore[arg-type]

    with Client(transport=Nosy(), dictionaries_dir=tmp_path, timeouts=PATIENT) as client:  # type: ignore[arg-type]
        client.match(SPEC, TOKENS)
    assert len(caught) == 1


def test_an_unusable_address_starts_no_thread(others: set[threading.Thread]) -> None:
    with pytest.raises(errors.ConfigurationError):
        Client(reload="nowhere")
    assert client_threads() <= others


@pytest.mark.parametrize("calls", [1, 3])
def test_views_are_asked_for_off_the_callers_thread(tmp_path: Path, calls: int) -> None:
    seen: set[str] = set()
    source = views_of(SPEC, random_cache(SPEC, 4))

    def noting(view: Callable[[int, int], torch.Tensor]) -> Callable[[int, int], torch.Tensor]:
        def read(page: int, group: int) -> torch.Tensor:
            seen.add(threading.current_thread().name.rpartition("_")[0])
            return view(page, group)

        return read

    with Client(
        transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        for call in range(calls):
            client.offload(SPEC, [t + call for t in TOKENS], noting(source))
    assert seen == {"lexico-client-0"}, "calls after one another keep to one thread"
