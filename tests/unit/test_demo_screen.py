"""The one screen that the demo ends with."""

from __future__ import annotations

from typing import Any

import pytest

from examples.two_nodes.screen import show


def _question(**received: int) -> dict[str, Any]:
    reloads = {
        codec: {"seconds": 0.5, "KL": 0.0, "answer": "It is.", "received bytes": count}
        for codec, count in received.items()
    }
    return {
        "question": "It was. I would like to know, because of 3.5 others: is it?",
        "tokens": 1600,
        "seconds": 4.0,
        "answer": "It is.",
        "reloads": reloads,
    }


def test_bytes_that_cost_nothing_on_loopback_are_told_as_what_a_network_would_take(
    capsys: pytest.CaptureFixture[str],
) -> None:
    offload = {"tokens": 1600, "cache bytes": 10**8, "stored bytes": 10**6, "seconds": 1.0}
    a = {"offloads": {"lossless": offload, "balanced": offload}, "dtype": "float32"}
    show(
        a,
        {
            "questions": [
                _question(lossless=125 * 10**6, balanced=1),
                _question(lossless=1, balanced=5 * 10**6),
            ]
        },
    )
    shown = capsys.readouterr().out
    assert "would add 1.00 s (lossless), 0.04 s (balanced)" in shown
    assert "1  ... I would like to know, because of 3.5 others: is it?\n" in shown
    assert max(len(line) for line in shown.splitlines()) <= 100
    assert len(shown.splitlines()) <= 30
