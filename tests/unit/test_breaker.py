"""A peer that does not answer costs one slow call, and one caller at a time finds out."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lexico_proto.breaker import SLOW_S, Admission, Breaker

CALL, PROBE, REFUSED = Admission.CALL, Admission.PROBE, Admission.REFUSED


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(1.0, clock=clock)


def test_one_slow_call_and_then_one_probe_at_a_time(breaker: Breaker, clock: Clock) -> None:
    assert breaker.admit() is CALL
    assert breaker.lost(2.0)
    assert breaker.open
    assert [breaker.admit() for _ in range(3)] == [REFUSED] * 3
    clock.now += 1.0
    assert [breaker.admit() for _ in range(3)] == [PROBE, REFUSED, REFUSED]
    clock.now += 5.0  # a probe that takes long is still the only one
    assert breaker.admit() is REFUSED
    assert not breaker.lost(5.0, probe=True)
    assert breaker.admit() is REFUSED
    clock.now += 1.0
    assert breaker.admit() is PROBE
    assert breaker.answered()
    assert [breaker.admit() for _ in range(3)] == [CALL] * 3
    assert breaker.silent_s == 0.0


def test_the_first_answer_closes_it_whoever_gets_it(breaker: Breaker, clock: Clock) -> None:
    breaker.lost(2.0)
    assert breaker.answered()  # to a call from before
    assert breaker.admit() is CALL
    assert not breaker.answered()


def test_losses_of_calls_from_before_change_nothing(breaker: Breaker, clock: Clock) -> None:
    breaker.lost(2.0)
    clock.now += 0.9
    assert not breaker.lost(2.9)
    clock.now += 0.1
    assert breaker.admit() is PROBE
    assert not breaker.lost(3.0)
    assert breaker.admit() is REFUSED  # the probe is still under way


def test_a_probe_that_learns_nothing_gives_way(breaker: Breaker, clock: Clock) -> None:
    breaker.lost(2.0)
    clock.now += 1.0
    assert breaker.admit() is PROBE
    breaker.let_go()
    assert [breaker.admit() for _ in range(2)] == [PROBE, REFUSED]


def test_what_costs_no_time_opens_nothing(breaker: Breaker) -> None:
    """A connection that is refused, and a caller that had a moment alone."""
    for _ in range(9):
        assert not breaker.lost(SLOW_S / 2)
    assert breaker.admit() is CALL


def test_where_another_may_take_over_it_is_waited_for(clock: Clock) -> None:
    breaker = Breaker(1.0, patience_s=5.0, clock=clock)
    breaker.silent()
    clock.now += 2.0
    assert not breaker.lost(2.0)
    clock.now += 2.0
    assert not breaker.lost(2.0)
    clock.now += 1.0
    assert breaker.lost(2.0)
    assert breaker.silent_s == 5.0
    breaker.answered()
    clock.now += 60.0
    assert not breaker.lost(4.0)  # another outage, from its beginning


def test_off_it_never_opens(clock: Clock) -> None:
    breaker = Breaker(0.0, clock=clock)
    assert not breaker.lost(60.0)
    assert breaker.admit() is CALL


def test_of_many_threads_one_is_the_probe(breaker: Breaker, clock: Clock) -> None:
    breaker.lost(2.0)
    for _ in range(20):
        clock.now += 1.0
        together = threading.Barrier(8)

        def ask(_: int, together: threading.Barrier = together) -> Admission:
            together.wait()
            return breaker.admit()

        with ThreadPoolExecutor(8) as threads:
            admitted = list(threads.map(ask, range(8)))
        assert sorted(each.name for each in admitted) == ["PROBE", *["REFUSED"] * 7]
        breaker.lost(1.0, probe=True)
