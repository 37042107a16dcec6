"""What `studies.quality` makes of its points, and which methods it runs."""

from __future__ import annotations

import pytest

from lexico_codec.geometry import Geometry, Rope
from lexico_lab import machine
from lexico_lab.evaluation.ways import Way, way_of
from lexico_lab.published import eviction, kivi, kvtc, scores
from lexico_lab.studies import quality
from lexico_lab.studies.quality import summary
from tests.support.residual_sets import residual_set


def row(method: str, fraction: float, kl: float) -> dict[str, object]:
    return {"method": method, "coder": f"{method} {fraction}", "fraction": fraction, "kl": kl}


def residual_way(name: str) -> Way:
    geometry = Geometry(2, 3, 16, "float16", Rope(tuple(10000.0 ** (-i / 8) for i in range(8))))
    return way_of(
        name, "lexico-residual", {"quality": "near"}, geometry, 16, residual_set(2, 3, 16)
    )


def test_lead_is_the_best_peer_over_ours() -> None:
    rows = [
        *(row("lexico", f, k) for f, k in ((0.05, 0.04), (0.1, 0.004))),
        *(row("kivi", f, k) for f, k in ((0.1, 0.04), (0.2, 0.004))),
        *(row("kvtc", f, k) for f, k in ((0.08, 0.04), (0.16, 0.004))),
    ]
    lead = summary(rows)["lead"]
    assert lead["0.01"] == pytest.approx(1.6)
    assert summary(rows[2:])["lead"]["0.01"] is None  # nothing of ours


def test_what_comes_after_an_eviction_is_neither_ours_nor_a_peer() -> None:
    peers = [row("kvzip", f, k) for f, k in ((0.1, 0.04), (0.2, 0.004))]
    ours = [row("lexico-residual", f, k) for f, k in ((0.05, 0.04), (0.1, 0.004))]
    both = [row("kvzip + lexico-residual", f, k) for f, k in ((0.01, 0.04), (0.02, 0.004))]
    found = summary([*peers, *ours, *both])
    assert found["lead"]["0.01"] == pytest.approx(2.0)
    assert found["bytes_at_kl"]["kvzip + lexico-residual"]["0.01"] < 0.02


def test_usual_evictions_run_alone_and_before_codecs_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"lexico-residual {setting}" for setting in (*quality.FREED, "step=3.0")]
    monkeypatch.setattr(quality, "residual", lambda model: [*map(residual_way, names)])
    monkeypatch.setattr(scores, "available", lambda: True)
    chosen = quality._evictions(None, [""])
    curves = {one.curve for one in chosen}
    ends = ("", " + lexico", " + lexico-residual")
    assert curves == {f"{method}{end}" for method in eviction.USUAL for end in ends}
    assert len({one.name for one in chosen}) == len(chosen)
    assert not any("step=3.0" in one.name for one in chosen)
    assert {one.curve for one in quality._evictions(None, ["tova"])} == {"tova", "tova + lexico"}
    monkeypatch.setattr(scores, "available", lambda: False)
    assert quality._evictions(None, [""]) == []


def test_points_of_what_learns_are_kept_by_how_much_it_learns_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner, other = kvtc.coders()[0], kivi.coders()[0]
    before = quality._key(learner), quality._key(other)
    monkeypatch.setattr(type(learner), "learns", 12)
    assert quality._key(learner) != before[0]
    assert quality._key(other) == before[1] == other.name


def test_threads_are_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine.threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert machine.threads() >= 1


def test_what_starts_coded_needs_the_codec_that_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "exact_text", lambda *_: None)
    coded = [one for one in eviction.evictions() if one.coded][:1]
    with pytest.raises(ValueError, match="lexico s=8"):
        quality.measure(None, [1], coded)
