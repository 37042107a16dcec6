"""What bench.engines makes of an engine's calls and of parts; SGLang itself is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.engines import calls, parts, sglang


def test_calls_underneath_count_from_the_first_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "calls"
    monkeypatch.setenv(calls.CALLS, str(file))
    clock = iter((3.0, 4.0, 5.0, 9.0))
    monkeypatch.setattr(calls, "now", lambda: next(clock))
    for name, began in (("load", 2.0), ("load", 2.5), ("get", 1.5), ("load", 8.0)):
        calls.write(name, began)
    found = calls.read(file)
    assert found == {"load": [(2.0, 3.0), (2.5, 4.0), (8.0, 9.0)], "get": [(1.5, 5.0)]}
    assert calls.seconds(found["get"]) == 3.5
    assert calls.underneath(found["get"], found["load"]) == 2.0


def test_figures_are_the_worst_of_codecs_and_shares_of_tokens() -> None:
    def row(scale: float) -> dict[str, dict[str, float]]:
        names = ("reload", "miss", "adapter", "store ratio", "beside own", "own")
        return {name: {"median": scale * (1 + at)} for at, name in enumerate(names)}

    found = sglang.figures(
        {
            "first-token": {"lossless": row(1.0), "balanced": row(0.5)},
            "agreement": {"near": {"forced": 30, "free": 16, "answer tokens": 32}},
        }
    )
    assert found == {
        "reload_lossless": 1.0,
        "reload_balanced": 0.5,
        "miss": 2.0,
        "adapter": 3.0,
        "store_ratio": 4.0,
        "beside_own": 5.0,
        "own": 3.0,
        "near_forced": 30 / 32,
        "near_free": 0.5,
    }
    goals = parts.judged(found, sglang.AT_MOST, sglang.AT_LEAST)
    assert not any(row["met"] for row in goals)
    assert [row["goal"] for row in goals if row["figure"] == "near_free"] == [">= 0.95"]
    met = parts.judged({"adapter": 0.05, "near_free": 0.95}, sglang.AT_MOST, sglang.AT_LEAST)
    assert [row["met"] for row in met] == [True, True]


def test_pieces_add_up() -> None:
    before = {"near": {"prompts": 5, "free": 70, "loaded": 576}}
    came = {"near": {"prompts": 3, "free": 40, "loaded": 512}}
    whole = parts.added(before, came, ("prompts", "free"))
    assert whole == {"near": {"prompts": 8, "free": 110, "loaded": 512}}
    with pytest.raises(SystemExit, match="no piece"):
        parts.added({}, came, ("prompts",))


def test_how_far_answers_agree() -> None:
    expected, free, forced = [[1, 2, 3], [4, 5, 6]], [[1, 9, 9], [4, 5, 6]], [[1, 2, 9], [4, 5, 6]]
    assert parts.agreement("near", [[0] * 8, [1] * 8], 12, expected, free, forced) == {
        "cache": "near",
        "prompts": 2,
        "prompt tokens": 8,
        "loaded": 6,
        "answer tokens": 6,
        "free": 4,
        "forced": 5,
        "whole answers": 1,
    }
    with pytest.raises(ValueError, match="zip"):
        parts.agreement("near", [[0]], 1, [[1, 2]], [[1]], [[1, 2]])
