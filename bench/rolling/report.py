"""What the calls of all nodes came to, before, during and after the change."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

BIN_S: Final = 5.0


def summary(
    calls: Sequence[Mapping[str, Any]], began: float, first: float, last: float
) -> dict[str, Any]:
    """Counts, retries, failures and hits.

    Args:
        calls: lines of the nodes' records.
        began: when the load began, in seconds since 1970.
        first: when the first server was replaced.
        last: when the last one was gone.
    """
    phases = {
        "steady": [call for call in calls if call["at"] < first],
        "rolling": [call for call in calls if first <= call["at"] < last],
        "after": [call for call in calls if call["at"] >= last],
    }
    failed = [call for call in calls if _failed(call)]
    return {
        "calls": len(calls),
        "retries": sum(call["retries"] for call in calls),
        "calls_retried": sum(call["retries"] > 0 for call in calls),
        "failures_beyond_a_retry": len(failed),
        "failed": [dict(call) for call in failed[:20]],
        "wrong_pages": sum(call.get("wrong", 0) for call in calls),
        "pages_offloaded": _pages(calls, "offload"),
        "pages_loaded": _pages(calls, "load"),
        "phases": {name: _phase(some) for name, some in phases.items()},
        "hit_rate": list(_hit_rate(calls, began)),
    }


def verdict(result: Mapping[str, Any]) -> list[str]:
    """What of it is a failure; nothing where all is well."""
    names = ("failures_beyond_a_retry", "wrong_pages", "tracebacks")
    found = [f"{name}: {result[name]}" for name in names if result[name]]
    found += [f"exit code {code}" for code in result["exit_codes"] if code]
    found += [f"no {what} in phase {name}" for name, what in _silent(result["phases"])]
    return found


def _failed(call: Mapping[str, Any]) -> bool:
    """An error after the one retry, or fewer pages than were acknowledged."""
    return call.get("reason") is not None or call.get("pages") != call.get("asked")


def _pages(calls: Iterable[Mapping[str, Any]], what: str) -> int:
    return sum(call.get("pages", 0) for call in calls if call["what"] == what)


def _phase(calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for what in ("load", "offload"):
        seconds = sorted(call["seconds"] for call in calls if call["what"] == what)
        told[what] = {
            "calls": len(seconds),
            "retried": sum(call["retries"] > 0 for call in calls if call["what"] == what),
            "p50_s": _quantile(seconds, 0.5),
            "p99_s": _quantile(seconds, 0.99),
            "max_s": _quantile(seconds, 1.0),
        }
    return told


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _hit_rate(calls: Iterable[Mapping[str, Any]], began: float) -> Iterable[dict[str, Any]]:
    """Pages that loads gave over pages that were acknowledged before, by time."""
    asked: Counter[int] = Counter()
    given: Counter[int] = Counter()
    for call in calls:
        if call["what"] == "load":
            at = int((call["at"] - began) // BIN_S)
            asked[at] += call.get("asked", 0)
            given[at] += call.get("pages", 0)
    for at in sorted(asked):
        rate = given[at] / asked[at] if asked[at] else None
        yield {"s": at * BIN_S, "pages": asked[at], "rate": rate}


def _silent(phases: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, told in phases.items():
        for what, counts in told.items():
            if not counts["calls"]:
                yield name, what
