"""What of a long run is a failure: a run that could not have shown one is none that went well."""

from __future__ import annotations

import signal
from typing import Any

import psutil
import pytest

from bench.endurance.report import failures, summary
from bench.endurance.watch import Growth, Watch

GROWN = {f"{name} growth": 0.0 for name in ("rss", "descriptors", "threads")}
PROCESS = {"process": "encoder", "rss": 100, "descriptors": 10, "threads": 10, **GROWN}


def call(what: str, **changes: Any) -> dict[str, Any]:
    return {"what": what, "seconds": 0.1, "deadline": 10.0, "pages": 100, **changes}


CALLS = [call(what, **more) for what in ("load", "offload")
         for more in ({}, {}, {"reason": "given-up", "pages": 0})]  # fmt: skip
RUN: dict[str, Any] = {
    "minutes": 1.0,
    "faults_planned": {"cut": 2},
    "faults": {"cut": 2},
    "restarts": 0,
    "recovered": True,
    "nodes_hung": [],
    "nodes_ended": [],
    "tracebacks": 0,
    "leases_left": 0,
    "left_behind": [],
    "processes": [PROCESS],
    "passing": [],
}
KINDS = ("chaos", "soak")


def judged(kind: str, *more: dict[str, Any], **changes: Any) -> list[str]:
    return failures({**RUN, **summary([*CALLS, *more]), **changes}, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_without_a_fault_of_ours_has_no_failure(kind: str) -> None:
    assert judged(kind) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"leases_left": 2}, "leases_left: 2"),
        ({"tracebacks": 1}, "tracebacks: 1"),
        ({"left_behind": ["exit code 1"]}, "left behind: exit code 1"),
        ({"nodes_hung": ["node 7"]}, "hung: node 7"),
        ({"minutes": 3.0}, "pages compared: 200, of at least 300"),
        ({"nodes_ended": [-signal.SIGSEGV]}, f"a node ended: {-signal.SIGSEGV}"),
        ({"nodes_ended": [1]}, "a node ended: 1"),
    ],
)
def test_what_went_wrong_is_told(kind: str, changes: dict[str, Any], line: str) -> None:
    assert judged(kind, **changes) == [line]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("more", "line"),
    [
        (call("load", wrong=[3]), "wrong_pages: 1"),
        (call("late"), "late_writes: 1"),
        (call("load", seconds=41.0), "calls_hung: 1"),
    ],
)
def test_calls_that_went_wrong_are_told(kind: str, more: dict[str, Any], line: str) -> None:
    assert line in judged(kind, more)


def test_chaos_kills_nodes_and_has_each_kind_of_fault() -> None:
    assert judged("chaos", nodes_ended=[-signal.SIGKILL]) == []
    assert judged("chaos", faults={"cut": 1}) == ["fault cut: 1 times of 2"]
    assert judged("chaos", recovered=False) == [
        "no page was stored, or none was loaded, after the last fault"
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"nodes_ended": [-signal.SIGKILL]}, "a node ended: -9"),  # of the kernel, out of memory
        ({"processes": []}, "no process was looked at from minute 5 on"),
        ({"passing": ["encoder 7"]}, "not there all the time: encoder 7"),
        ({"restarts": 1}, "the service ended 1 times"),
        ({"processes": [{**PROCESS, "rss growth": 0.06}]}, "encoder: rss grew by 6.0%"),
        (
            {"processes": [{**PROCESS, "threads": 14, "threads growth": 0.4}]},
            "encoder: threads grew by 40.0%",
        ),
    ],
)
def test_what_grows_or_is_replaced_is_told_of_a_soak(changes: dict[str, Any], line: str) -> None:
    assert judged("soak", **changes) == [line]


def test_one_or_two_threads_more_are_none_of_a_leak() -> None:
    assert judged("soak", processes=[{**PROCESS, "threads": 12, "threads growth": 0.2}]) == []


def test_processes_that_come_or_go_are_seen() -> None:
    watch = Watch()
    for pid, minutes in {
        1: range(11),
        2: range(7),  # ended
        3: range(8, 11),  # in its place
        4: range(4),  # ended before it counts
        5: range(7, 8),  # a program that ended at once
    }.items():
        watch.processes[pid] = Growth(f"process {pid}", [float(m) for m in minutes])
    assert watch.passing(5.0) == [
        "process 2: minutes 0.0 to 6.0",
        "process 3: minutes 8.0 to 10.0",
    ]


def test_a_process_that_is_there_is_seen_as_such() -> None:
    watch = Watch()
    watch.look({"this": psutil.Process()})
    assert watch.passing(0.0) == []
