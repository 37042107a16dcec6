"""Curves of quality against bytes, and bytes at equal quality."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise


def curve(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """(fraction, KL) of the points that no other beats in both, by rising fraction."""
    kept: list[tuple[float, float]] = []
    for fraction, kl in sorted(points):
        if not kept or kl < kept[-1][1]:
            kept.append((fraction, kl))
    return kept


def fraction_at(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Bytes as a fraction at a KL, between two points of a curve; None beyond its ends."""
    for (small, worse), (large, better) in pairwise(points):
        if better <= kl <= worse:
            if better <= 0:
                return large
            share = math.log(worse / kl) / math.log(worse / better)
            return small + share * (large - small)
    return None
