"""Threads of the client: a call keeps to one of them."""

from __future__ import annotations

import threading

import pytest

from lexico_client._crew import Crew


def test_a_call_keeps_to_its_thread_and_calls_spread() -> None:
    crew = Crew(2)

    def where(thread: object) -> int:
        return thread.submit(threading.get_ident).result()  # type: ignore[attr-defined]

    with crew.one() as first:
        with crew.one() as second, crew.one() as third:
            assert len({where(first) for _ in range(5)}) == 1
            assert where(first) != where(second)
            assert third is first, "the first of equals"
        with crew.one() as again:
            assert again is second
    with crew.one() as alone:
        assert alone is first, "warm from the calls before"
    crew.close()
    crew.close()


def test_work_that_raises_what_no_future_takes() -> None:
    """As `next` of a caller's iterator does: a loop would wait for it until the deadline."""
    crew = Crew(1)
    with crew.one() as thread:
        future = thread.submit(next, iter(()))
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            future.result()
    assert isinstance(caught.value.__cause__, StopIteration)
    crew.close()
