"""The arithmetic of `bench.quality`: curves, interpolation, lead."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bench import quality, report
from bench.quality import summary
from lexico_lab.evaluation.curves import curve, fraction_at
from lexico_lab.published import eviction, kivi, kvtc


def row(method: str, fraction: float, kl: float) -> dict[str, object]:
    return {"method": method, "coder": f"{method} {fraction}", "fraction": fraction, "kl": kl}


def test_a_curve_leaves_out_what_another_setting_beats() -> None:
    points = [(0.3, 0.01), (0.1, 0.1), (0.2, 0.2), (0.4, 0.02)]
    assert curve(points) == [(0.1, 0.1), (0.3, 0.01)]


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.1, 0.1), (0.01, 0.3), (0.1**1.5, 0.2), (0.2, None), (0.001, None)],
)
def test_bytes_are_interpolated_between_points_alone(kl: float, expected: float | None) -> None:
    found = fraction_at([(0.1, 0.1), (0.3, 0.01)], kl)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_a_lossless_end_is_reached_only_at_its_own_bytes() -> None:
    assert fraction_at([(0.1, 0.1), (1.0, 0.0)], 0.05) == 1.0


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
    spec = SimpleNamespace(codec=SimpleNamespace(name="lexico-residual"))
    names = [f"lexico-residual {setting}" for setting in (*quality.FREED, "step=3.0")]
    made = [SimpleNamespace(name=name, spec=spec) for name in names]
    monkeypatch.setattr(quality, "residual", lambda model: made)
    monkeypatch.setattr(eviction, "available", lambda: True)
    chosen = quality._evictions(None, [""])
    curves = {one.curve for one in chosen}
    ends = ("", " + lexico", " + lexico-residual")
    assert curves == {f"{method}{end}" for method in eviction.USUAL for end in ends}
    assert len({one.name for one in chosen}) == len(chosen)
    assert not any("step=3.0" in one.name for one in chosen)
    assert {one.curve for one in quality._evictions(None, ["tova"])} == {"tova", "tova + lexico"}
    monkeypatch.setattr(eviction, "available", lambda: False)
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
    assert report.threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert report.threads() >= 1
