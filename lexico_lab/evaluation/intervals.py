"""Confidence intervals over texts, by the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypedDict

import numpy as np

RESAMPLES: Final = 2000
LEVEL: Final = 0.95


class Interval(TypedDict):
    """A mean over texts, and the percentile interval of its resampled means."""

    mean: float
    low: float | None
    high: float | None


def interval(values: Sequence[float], seed: int) -> Interval:
    """Mean and 95 % interval of one number a text.

    The texts that are drawn depend on the seed and their number alone, so that all methods see the
    same ones. One text has no interval. Percentile bootstrap (Efron 1979).
    """
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return {"mean": mean, "low": None, "high": None}
    draws = np.random.default_rng(seed).integers(0, len(found), (RESAMPLES, len(found)))
    ends = np.quantile(found[draws].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": mean, "low": float(ends[0]), "high": float(ends[1])}
