"""Entropy tables from counted levels."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lexico_codec.kernels.entropy import SYMBOLS, TOTAL, Tables
from lexico_codec.kernels.levels import MIDDLE, choose_levels
from lexico_codec.transform import CLASSES_AN_OCTAVE, LEAST_OCTAVE

_MOST_OCTAVE: Final = 9
_PRIOR: Final = 64.0  # values that a Laplace distribution stands for in each class
_FEW: Final = 30.0  # levels: a point of fewer stays the level itself
_AGREEING: Final = 1.25
"""How many times its square an error costs that all values of a class have a share of."""


class Counts:
    """How often the values of each class take each level."""

    def __init__(self) -> None:
        self.classes = (_MOST_OCTAVE - LEAST_OCTAVE) * CLASSES_AN_OCTAVE + 1
        octaves = torch.arange(self.classes) / CLASSES_AN_OCTAVE + LEAST_OCTAVE
        self._shifts = (octaves.floor() - 1).clamp(min=0).to(torch.uint8)
        self._prior = _PRIOR * _laplace(torch.exp2(octaves.double()), self._shifts)
        self._symbols = torch.zeros_like(self._prior)
        self._levels = torch.zeros(self.classes, MIDDLE + 1, dtype=torch.float64)
        self._sums = torch.zeros_like(self._levels)
        self._squares = torch.zeros(self.classes, dtype=torch.float64)

    def add(self, values: Tensor, classes: Tensor, offsets: Tensor, tables: Tables) -> None:
        """Counts the levels that `tables` make of values, see `choose_levels`."""
        levels = choose_levels(values, classes, offsets, tables)
        effective = classes.long()[:, None] + offsets.long()[None]
        effective = effective.clamp(max=self.classes - 1)
        coded = effective >= 0
        e, q, v = effective[coded], levels[coded].long(), values[coded].abs().double()
        high = q >> self._shifts.long()[e]
        symbol = torch.where(high.abs() > MIDDLE, SYMBOLS - 1, high + MIDDLE)
        size = self._symbols.numel()
        met = torch.bincount(e * SYMBOLS + symbol, minlength=size)
        self._symbols += met.view_as(self._symbols)
        own = q.abs() <= MIDDLE
        at, size = e[own] * (MIDDLE + 1) + q[own].abs(), self._levels.numel()
        self._levels += torch.bincount(at, minlength=size).view_as(self._levels)
        self._sums += torch.bincount(at, v[own], size).view_as(self._sums)
        self._squares += torch.bincount(e[own], v[own].square(), self.classes)

    def tables(self) -> Tables:
        """Tables of what was counted, signs taken alike, and of the prior."""
        counted = self._symbols + self._prior
        plain = counted[:, : SYMBOLS - 1]
        even = (plain + plain.flip(1)) / 2
        shifted = self._shifts > 0  # there, high = q >> k is not symmetric
        plain = torch.where(shifted[:, None], plain, even)
        shares = torch.cat([plain, counted[:, -1:]], 1)
        shares /= shares.sum(1, keepdim=True)
        return Tables(_rounded(shares), self._shifts, self._points().float().contiguous())

    def _points(self) -> Tensor:
        """What each level stands for, `[E, 16]`: the mean of its values, and a little more.

        Means have the least error, but they and the levels of 0 make values smaller all together.
        Errors of many tokens that point the same way are not averaged out by attention: they cost
        the predictions more than others of their size. All levels but 0 are larger by what is least
        in the mean square and `_AGREEING` times the square of the share that is lost.
        """
        points = torch.arange(MIDDLE + 1.0).expand(self.classes, -1).double()
        points = torch.where(self._levels >= _FEW, self._sums / self._levels.clamp(min=1), points)
        points[:, 0] = 0
        values = self._levels.sum(1).clamp(min=1)
        some = self._levels[:, 1:].sum(1)
        square = (self._squares / values).clamp(min=1e-30)
        size = (self._levels * points).sum(1) / values
        lost = 1 - (self._levels * points.square()).sum(1) / values / square
        push = _AGREEING * size
        more = push * lost.clamp(min=0) / (some / values + push * size / square).clamp(min=1e-30)
        points[:, 1:] += torch.where(some >= _FEW, more, 0.0)[:, None]
        return points


def _rounded(shares: Tensor) -> Tensor:
    """Frequencies of 4096 in all nearest to shares `[E, 32]`; the escape has one at least."""
    exact = shares * TOTAL
    exact[:, -1].clamp_(min=1)
    counts = exact.round()
    most = counts.argmax(1, keepdim=True)
    counts.scatter_add_(1, most, TOTAL - counts.sum(1, keepdim=True))
    return counts.int()


def _laplace(deviations: Tensor, shifts: Tensor) -> Tensor:
    """Shares of symbols `[E, 32]` of Laplace distributions, levels rounded to the nearest."""
    edges = (torch.arange(-MIDDLE, MIDDLE + 2)[None] * 2.0 ** shifts.double()[:, None]) - 0.5
    scaled = edges * (2**0.5 / deviations[:, None])
    tail = torch.exp(-scaled.abs()) / 2
    below = torch.where(scaled < 0, tail, 1 - tail)
    shares = below.diff(dim=1)
    return torch.cat([shares, (1 - shares.sum(1, keepdim=True)).clamp(min=0)], 1)
