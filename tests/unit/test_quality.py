"""The arithmetic of `bench.quality`: curves, interpolation, lead."""

from __future__ import annotations

import pytest

from bench.quality import summary
from lexico_codec.evaluation.curves import curve, fraction_at


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
