"""What adapters warn of: each kind once a minute, however often it happens."""

from __future__ import annotations

import logging

import pytest

from lexico_client.engines import _counts
from lexico_client.engines._counts import WARN_EVERY_S, Counts
from lexico_proto.errors import Unavailable
from lexico_proto.metrics import Metrics

LOG = logging.getLogger("tests.engine")


class Clock:
    """In place of the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_each_kind_is_warned_of_once_a_minute_with_how_many_there_were(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr(_counts, "time", clock)
    counts = Counts(LOG, Metrics())
    for _ in range(5):
        counts.warn("load", Unavailable("gone"))
        clock.now += WARN_EVERY_S / 5
    counts.warn("load", Unavailable("gone still"))
    counts.warn("match", ValueError("ours"))
    words = [record.getMessage() for record in caplog.records]
    start = "failed, the engine computes by itself: reason"
    assert words == [
        f"load {start}=unavailable since_last=1 error=gone",
        f"load {start}=unavailable since_last=5 error=gone still",
        f"match {start}=ValueError since_last=1 error=ours",
    ]
    assert [record.exc_info is not None for record in caplog.records] == [False, False, True]
