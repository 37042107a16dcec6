"""What the calls of all nodes came to, and what of a run is a failure."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from bench.endurance.node import ABORTED

SLACK_S: Final = 30.0
"""A call that takes longer than its deadline by this much hung: a busy machine is late by less."""
GROWTH: Final = 0.05
FILLED: Final = 2
"""Threads or descriptors more that are none of a leak: a pool that had not been full before."""
SETTLED_MINUTES: Final = 5.0
LEAST_OF_A_KIND: Final = 2
LEAST_COMPARED_A_MINUTE: Final = 100
"""Pages: a run in which nodes hardly load any shows nothing. A busy machine compares 1,000."""
ABORTED_WITHIN: Final = 0.05


def summary(calls: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Pages, deadlines and outcomes.

    Args:
        calls: lines of the nodes' records.
    """
    calls = list(calls)
    loads = [call for call in calls if call["what"] == "load"]
    offloads = [call for call in calls if call["what"] == "offload"]
    late = [call["seconds"] - call["deadline"] for call in loads + offloads]
    return {
        "loads": len(loads),
        "offloads": len(offloads),
        "pages_compared": sum(call.get("pages", 0) for call in loads),
        "wrong_pages": sum(len(call.get("wrong", ())) for call in loads),
        "late_writes": sum(call["what"] == "late" for call in calls),
        "calls_hung": sum(seconds > SLACK_S for seconds in late),
        "longest_over_deadline_s": max(late, default=0.0),
        "given_up_share": {"load": _given_up(loads), "offload": _given_up(offloads)},
        "given_up_while_moving": sum(call.get("moved", 0) > 0 for call in calls),
        "load_outcomes": _outcomes(loads, "pages", "miss"),
        "offload_outcomes": _outcomes(offloads, "done", "nothing"),
    }


def working_calls(calls: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Loads that gave pages, and offloads that stored some."""
    whole = [call for call in calls if call.get("pages") and not call.get("reason")]
    loads = sum(call["what"] == "load" for call in whole)
    return loads, sum(call["what"] == "offload" for call in whole)


def failures(result: Mapping[str, Any], kind: str) -> list[str]:
    """One line for each.

    Args:
        result: of `summary` and of the run.
        kind: "chaos" or "soak".
    """
    names = ("wrong_pages", "late_writes", "calls_hung", "leases_left", "tracebacks")
    found = [f"{name}: {result[name]}" for name in names if result[name]]
    found += [f"left behind: {name}" for name in result["left_behind"]]
    found += [f"hung: {name}" for name in result["nodes_hung"]]
    meant = (-signal.SIGKILL,) if kind == "chaos" else ()
    found += [f"a node ended: {code}" for code in result["nodes_ended"] if code not in meant]
    least = round(LEAST_COMPARED_A_MINUTE * result["minutes"])
    if result["pages_compared"] < least:
        found.append(f"pages compared: {result['pages_compared']}, of at least {least}")
    found += [
        f"{share:.0%} of the calls {what} were given up"
        for what, share in result["given_up_share"].items()
        if abs(share - ABORTED) > ABORTED_WITHIN
    ]
    return found + (_of_chaos(result) if kind == "chaos" else _of_soak(result))


def _of_chaos(result: Mapping[str, Any]) -> list[str]:
    found = [
        f"fault {name}: {times} times of {result['faults_planned'][name]}"
        for name, times in result["faults"].items()
        if times < min(LEAST_OF_A_KIND, result["faults_planned"][name])
    ]
    if not result["recovered"]:
        found.append("no page was stored, or none was loaded, after the last fault")
    return found


def _of_soak(result: Mapping[str, Any]) -> list[str]:
    found = [
        f"{row['process'][:60]}: {name} grew by {row[f'{name} growth']:.1%}"
        for row in result["processes"]
        for name in ("rss", "descriptors", "threads")
        if row[f"{name} growth"] > GROWTH and (name == "rss" or _more(row, name) > FILLED)
    ]
    found += [f"not there all the time: {line}" for line in result["passing"]]
    if not result["processes"]:
        found.append(f"no process was looked at from minute {SETTLED_MINUTES:g} on")
    if result["restarts"]:
        found.append(f"the service ended {result['restarts']} times")
    return found


def _more(row: Mapping[str, Any], name: str) -> float:
    """How many more than at the beginning; the row has what there were at the end."""
    last = float(row[name])
    return last - last / (1 + float(row[f"{name} growth"]))


def _given_up(calls: list[dict[str, Any]]) -> float:
    given_up = [call for call in calls if call.get("reason") == "given-up"]
    return len(given_up) / max(1, len(calls))


def _outcomes(calls: list[dict[str, Any]], some: str, none: str) -> dict[str, int]:
    """Outcome → calls, the most frequent first: "pages", "miss, unavailable", "given-up"."""

    def outcome(call: dict[str, Any]) -> str:
        reason = call.get("reason")
        if reason == "given-up":
            return "given-up"
        what = some if call.get("pages") else none
        return f"{what}, {reason}" if reason else what

    return dict(Counter(map(outcome, calls)).most_common())
