"""Steps are found for a KL, and a few windows are not taken for all text."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lexico_lab.training.calibrate import promised, step_for
from lexico_proto.errors import InvalidInput


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 2.4])
@pytest.mark.parametrize("guess", [1e-3, 0.03, 1.0, 50.0])
def test_step_for_finds_the_step(guess: float, exponent: float) -> None:
    calls: list[float] = []

    def kl_of(step: float) -> float:
        calls.append(step)
        return 0.02 * (step / 0.7) ** exponent

    found = step_for(0.02, guess, kl_of)
    assert 0.02 / 1.08 <= kl_of(found) <= 0.02 * 1.08
    assert len(calls) <= 5


def test_what_is_promised_holds_for_a_dozen_others() -> None:
    """Of draws as skewed as windows' KLs, about 9 times in 10; their mean every other time."""
    generator = torch.Generator().manual_seed(2)
    draws = torch.randn(2000, 24, generator=generator).mul(0.6).exp()
    others = torch.randn(2000, 12, generator=generator).mul(0.6).exp().mean(1)
    kept = sum(promised(row.tolist()) > other for row, other in zip(draws, others, strict=True))
    assert 0.88 < kept / len(draws) < 0.93
    assert 0.45 < float((draws.mean(1) > others).double().mean()) < 0.55
    assert promised([0.03]) == 0.03
    assert promised([1.0, 3.0]) == pytest.approx(2 + 1.645 * math.sqrt(2 * (1 / 2 + 1 / 12)))
    with pytest.raises(InvalidInput, match="not finite"):
        promised([0.1, math.nan])


def test_step_for_copes_with_curves_that_bend() -> None:
    def bent(step: float) -> float:
        return 3 * step**2 / (1 + step**1.2) + 1e-5

    for target in (0.005, 0.02, 0.05):
        for guess in (0.01, 0.1, 1.0):
            assert bent(step_for(target, guess, bent)) == pytest.approx(target, rel=0.081)


def constant(kl: float, calls: list[float]) -> Callable[[float], float]:
    def kl_of(step: float) -> float:
        calls.append(step)
        return kl

    return kl_of


def test_step_for_without_a_step_gives_the_nearest() -> None:
    """Flat, falling and zero curves end, after as many tries as any."""
    for kl in (0.0, 0.5, 1e9):
        calls: list[float] = []
        step = step_for(0.02, 0.1, constant(kl, calls))
        assert any(step == pytest.approx(tried) for tried in calls)
        assert len(calls) == 6
    tried: dict[float, float] = {}

    def noisy(step: float) -> float:
        tried[step] = 0.02 * (3 if len(tried) % 2 else 0.4) * step
        return tried[step]

    found = step_for(0.02, 1.0, noisy)
    best = min(tried, key=lambda step: abs(math.log(tried[step] / 0.02)))
    assert found == pytest.approx(best)
