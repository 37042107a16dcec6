"""Levels of the entropy coder: the cheapest ones, within what it can hold."""

from __future__ import annotations

import math

import pytest
import torch

from lexico_codec.kernels.entropy.levels import (
    ESCAPE_BITS,
    RATE_WEIGHT,
    choose_levels,
)
from lexico_codec.kernels.entropy.tables import MIDDLE, SYMBOLS, TOTAL, Tables
from lexico_lab.training.counts import Counts

# Levels


def random_tables(seed: int, classes: int = 6) -> Tables:
    """Frequencies some of which are zero, points off the whole numbers, the last with raw bits."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(classes, SYMBOLS, generator=generator).pow(3)
    counts = (shares / shares.sum(1, keepdim=True) * 3800).int()
    counts[:, -1] += 1
    counts[:, MIDDLE] += TOTAL - counts.sum(1)
    points = torch.arange(16.0) - 0.3 * torch.rand(classes, 16, generator=generator)
    points[:, 0] = 0
    shifts = torch.zeros(classes, dtype=torch.uint8)
    shifts[-1] = 2
    return Tables(counts.int(), shifts, points)


def brute_force(value: float, at: int, tables: Tables, weight: float) -> dict[int, float]:
    """Prices of the levels that are looked at, nearest first."""
    counted = tables.frequencies[at].double() / TOTAL
    size, nearest = abs(value), round(abs(value))
    prices = {}
    escape = -math.log2(counted[-1]) + ESCAPE_BITS
    for level in dict.fromkeys((nearest, max(nearest - 1, 0), 0)):
        bits, point = escape, float(level)
        if level <= MIDDLE:
            both = [float(counted[MIDDLE + sign * level]) for sign in (1, -1)]
            of = [min(-math.log2(f), escape) if f else min(40, escape) for f in both]
            bits, point = sum(of) / 2, float(tables.points[at, level])
        prices[level] = (size - point) ** 2 + weight * bits
    return prices


@pytest.mark.parametrize("weight", [RATE_WEIGHT, 0.0, 1.0])
def test_levels_are_the_cheapest(weight: float) -> None:
    tables = random_tables(0)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(40, 30, generator=generator) * torch.logspace(-1, 1.5, 40)[:, None]
    classes = torch.randint(-3, 7, (40,), generator=generator).to(torch.int16)
    offsets = torch.randint(-2, 3, (30,), generator=generator).to(torch.int8)
    found = choose_levels(values, classes, offsets, tables, weight)
    assert found.dtype == torch.int32
    met = set()
    for c in range(40):
        for t in range(30):
            at, value = min(int(classes[c] + offsets[t]), 5), float(values[c, t])
            level = int(found[c, t])
            if at < 0:
                assert level == 0
            elif at == 5:
                assert level == round(value)
            else:
                prices = brute_force(value, at, tables, weight)
                assert abs(level) in prices
                assert level == 0 or (level < 0) == (value < 0)
                assert prices[abs(level)] <= min(prices.values()) + 1e-4
                met.add(round(abs(value)) - abs(level))
    assert met >= {0, 1} or not weight, "levels that save bits were never met"


def test_levels_keep_to_the_coder() -> None:
    values = torch.tensor([[0.0, -0.0, 0.49, -0.51, 2.0**29, -(2.0**29), 15.4, 16.0]])
    for classes in (0, 45):
        found = choose_levels(
            values,
            torch.tensor([classes], dtype=torch.int16),
            torch.zeros(8, dtype=torch.int8),
            Counts().tables(),
        )
        assert found[0, :2].tolist() == [0, 0]
        assert found[0, 4:6].tolist() == [2**29, -(2**29)]
