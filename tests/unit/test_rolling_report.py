"""What a rolling change counts as lost."""

from __future__ import annotations

from typing import Any

from bench.rolling.report import summary, verdict


def call(what: str, at: float, **changes: Any) -> dict[str, Any]:
    usual = {"what": what, "at": at, "seconds": 0.1, "retries": 0, "asked": 3, "pages": 3}
    return {**usual, "wrong": 0, **changes}


CALLS = [call(what, at) for at in (1.0, 11.0, 21.0) for what in ("load", "offload")]


def judged(*more: dict[str, Any]) -> list[str]:
    result = summary([*CALLS, *more], began=0.0, first=10.0, last=20.0)
    return verdict({**result, "tracebacks": 0, "exit_codes": [0]})


def test_nothing_is_lost_where_each_call_gave_what_was_asked() -> None:
    result = summary(CALLS, began=0.0, first=10.0, last=20.0)
    assert [told["load"]["calls"] for told in result["phases"].values()] == [1, 1, 1]
    assert [each["rate"] for each in result["hit_rate"]] == [1.0, 1.0, 1.0]
    assert (result["pages_loaded"], result["retries"]) == (9, 0)
    assert judged() == []
    assert judged(call("load", 12.0, retries=1)) == []


def test_what_is_lost_is_told() -> None:
    assert judged(call("load", 12.0, pages=2)) == ["failures_beyond_a_retry: 1"]
    assert judged(call("offload", 12.0, reason="unavailable")) == ["failures_beyond_a_retry: 1"]
    assert judged(call("load", 12.0, wrong=2)) == ["wrong_pages: 2"]


def test_a_phase_without_calls_shows_nothing() -> None:
    result = summary(CALLS[2:], began=0.0, first=10.0, last=20.0)
    told = verdict({**result, "tracebacks": 1, "exit_codes": [0, 1]})
    assert told == [
        "tracebacks: 1",
        "exit code 1",
        "no load in phase steady",
        "no offload in phase steady",
    ]
