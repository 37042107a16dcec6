"""Coroutines of threads without a loop: nothing waits for a loop that is not there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from lexico_client import Client, InMemoryTransport, _loop_thread
from lexico_client._runner import Runner
from lexico_proto import errors
from tests.support.client_fixtures import TOKENS, Landing, small_spec
from tests.support.waiting import PATIENCE_S, linger, lingering


@pytest.fixture
def runner() -> Iterator[Runner]:
    runner = Runner("lexico-client-test")
    yield runner
    runner.close(nothing)


async def nothing() -> None:
    pass


async def seven() -> int:
    return 7


async def forever() -> None:
    await asyncio.Event().wait()


def test_a_thread_is_started_by_the_first_call(runner: Runner) -> None:
    assert named("lexico-client-test") == set()
    assert runner.run(seven(), PATIENCE_S) == 7
    started = named("lexico-client-test")
    assert len(started) == 1
    assert runner.run(seven(), PATIENCE_S) == 7
    assert named("lexico-client-test") == started


def named(name: str) -> set[threading.Thread]:
    """Threads of this name: those of other tests end when they do."""
    return {thread for thread in threading.enumerate() if thread.name == name}


def test_work_that_is_late_is_waited_for_while_the_loop_answers(runner: Runner) -> None:
    """It may be at the caller's memory, in a thread that cannot be stopped."""

    async def late() -> int:
        await lingering()
        return 7

    assert runner.run(late(), 0.01) == 7


def test_a_loop_that_is_stuck_is_left_behind(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_loop_thread, "GRACE_SECONDS", 0.2)
    release = threading.Event()

    async def stuck() -> None:
        release.wait()

    with pytest.raises(errors.DeadlineExpired, match="stuck"):
        runner.run(stuck(), 0.1)
    assert runner.run(stuck(), 0.1, lambda error: type(error)) is errors.DeadlineExpired
    release.set()


def test_a_loop_that_ends_ends_its_calls_and_the_next_starts_another(runner: Runner) -> None:
    outcome, waiting = list[BaseException](), threading.Event()

    async def wait() -> None:
        waiting.set()
        await forever()

    def call() -> None:
        try:
            runner.run(wait(), 600)
        except errors.LexicoError as error:
            outcome.append(error)

    async def leave() -> None:
        raise SystemExit(3)

    caller = threading.Thread(target=call)
    caller.start()
    assert waiting.wait(PATIENCE_S)
    with pytest.raises(SystemExit):
        runner.run(leave(), 600)
    caller.join(PATIENCE_S)
    assert [type(error) for error in outcome] == [errors.InternalError]
    assert runner.run(seven(), PATIENCE_S) == 7


def test_an_interrupt_waits_for_the_work(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = list[bool]()

    async def work() -> None:
        try:
            await forever()
        finally:
            await lingering()
            ended.append(True)

    settle, interrupted = _loop_thread.LoopThread._settle, list[bool]()

    def once(self: _loop_thread.LoopThread, call: object, seconds: float) -> bool:
        if not interrupted:
            interrupted.append(True)
            linger()
            raise KeyboardInterrupt
        return settle(self, call, seconds)  # type: ignore[arg-type]

    monkeypatch.setattr(_loop_thread.LoopThread, "_settle", once)
    with pytest.raises(KeyboardInterrupt):
        runner.run(work(), 600)
    assert ended == [True]


def test_a_load_of_a_stuck_client_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loop_thread, "GRACE_SECONDS", 0.2)
    release = threading.Event()

    class Stuck(InMemoryTransport):
        async def match(self, request: object, timeout: float) -> object:  # type: ignore[override]
            release.wait()
            raise errors.Unavailable("gone")

    client = Client(transport=Stuck())  # type: ignore[arg-type]
    loaded = client.load(small_spec(), TOKENS, Landing(small_spec()), timeout=0.1)
    assert (loaded.pages, type(loaded.reason)) == (0, errors.DeadlineExpired)
    with pytest.raises(errors.DeadlineExpired):
        client.match(small_spec(), TOKENS, timeout=0.1)
    release.set()
    client.close()


def test_a_timeout_that_cannot_be_used_starts_nothing() -> None:
    with Client(transport=InMemoryTransport()) as client:
        for timeout in (0, -1.0, "3"):
            with pytest.raises(errors.ConfigurationError, match="timeout"):
                client.match(small_spec(), TOKENS, timeout=timeout)  # type: ignore[arg-type]
