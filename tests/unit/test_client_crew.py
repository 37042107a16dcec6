"""Threads of the client: a call keeps to one of them."""

from __future__ import annotations

import threading

from lexico_client._crew import Crew


def test_a_call_keeps_to_its_thread_and_calls_spread() -> None:
    crew = Crew(2)

    def where(thread: object) -> int:
        return thread.submit(threading.get_ident).result()  # type: ignore[attr-defined, no-any-return]

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
