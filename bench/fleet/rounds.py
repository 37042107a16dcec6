"""Sides of a comparison in turn, and what their ratios say."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def interleaved(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round, the order turned every round; the first warms all."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            started = time.perf_counter()
            sides[name]()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range of ratios: how far a busy machine scatters them."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def against(seconds: Mapping[str, Sequence[float]], peer: str) -> list[dict[str, Any]]:
    """A row for each side: its median time, and its rounds' ratios to those of `peer`."""
    rows = []
    for name, own in seconds.items():
        ratios = spread([ours / theirs for ours, theirs in zip(own, seconds[peer], strict=True)])
        rows.append({"side": name, "ms": statistics.median(own) * 1e3, **ratios})
    return rows
