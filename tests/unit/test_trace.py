"""Trace context out of metadata: what is carried, and all that is not."""

from __future__ import annotations

import pickle

import pytest

from lexico_services.caller import Metadata
from lexico_services.trace import MAX_TRACEPARENT_CHARS, MAX_TRACESTATE_CHARS, trace_of
from lexico_worker.page_encoder import PageJob
from tests.support.services import prompt

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
KEPT = ("traceparent", PARENT)


@pytest.mark.parametrize("metadata", [None, (), (("authorization", "Bearer x"),)])
def test_calls_without_a_trace(metadata: Metadata) -> None:
    assert trace_of(metadata) == ()


@pytest.mark.parametrize(
    "parent",
    [
        PARENT,
        f"00-{TRACE}-{SPAN}-00",
        f"cc-{TRACE}-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01-what-comes-later",
    ],
)
def test_a_parent_is_carried(parent: str) -> None:
    assert trace_of((("a", "b"), ("traceparent", parent))) == (("traceparent", parent),)


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "00",
        PARENT[:-1],
        PARENT + "0",
        PARENT + "-more",
        PARENT + "\n",
        PARENT.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01-a b",
        f"01-{TRACE}-{SPAN}-01-" + "x" * MAX_TRACEPARENT_CHARS,
        PARENT.replace("4", "４"),
        PARENT.encode(),
    ],
)
def test_a_bad_parent_is_dropped_with_its_state(parent: str | bytes) -> None:
    assert trace_of((("traceparent", parent), ("tracestate", "a=b"))) == ()


def test_two_parents_are_none() -> None:
    assert trace_of((KEPT, KEPT)) == ()


def test_a_state_needs_a_parent() -> None:
    assert trace_of((("tracestate", "a=b"),)) == ()


@pytest.mark.parametrize(
    "state",
    [
        "a=b",
        "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        "fw529a3039@dt=FfAkT,a=1 , b=2 2,,c=3",
        ",".join(f"k{i}=v" for i in range(32)),
        "a=" + "x" * 256,
    ],
)
def test_a_state_is_carried(state: str) -> None:
    assert trace_of((KEPT, ("tracestate", state))) == (KEPT, ("tracestate", state))


def test_states_in_several_headers_are_one() -> None:
    found = trace_of((("tracestate", "a=1"), KEPT, ("tracestate", "b=2")))
    assert found == (KEPT, ("tracestate", "a=1,b=2"))


@pytest.mark.parametrize(
    "state",
    [
        "",
        "a",
        "A=b",
        "a=b\n",
        "a=\x7f",
        "a=é",
        "a=b=c",
        "a=",
        "a=" + "x" * 257,
        ",".join(f"k{i}=v" for i in range(33)),
        ",".join(["k=" + "x" * 100] * (MAX_TRACESTATE_CHARS // 100)),
        b"a=b",
    ],
)
def test_a_bad_state_is_dropped_alone(state: str | bytes) -> None:
    assert trace_of((KEPT, ("tracestate", state))) == (KEPT,)


def test_jobs_carry_a_trace_and_do_not_show_it() -> None:
    made = prompt()
    job = PageJob(b"s" * 16, made.spec, 0, made.keys[0], trace=(KEPT,))
    assert pickle.loads(pickle.dumps(job)).trace == (KEPT,)  # noqa: S301 - as Ray does
    assert TRACE not in repr(job)
    assert PageJob(b"s" * 16, made.spec, 0, made.keys[0]).trace == ()
