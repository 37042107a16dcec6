"""Entropy tables from counted levels."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lexico_codec.kernels.entropy.levels import choose_levels
from lexico_codec.kernels.entropy.tables import MIDDLE, SYMBOLS, TOTAL, Tables
from lexico_codec.sets.transform import CLASSES_AN_OCTAVE, LEAST_OCTAVE

_MOST_OCTAVE: Final = 9
_PRIOR: Final = 64.0  # values that a Laplace distribution stands for in each class
_FEW: Final = 30.0  # levels: a point of fewer stays the level itself
_MANY: Final = 300.0  # levels: a class of fewer has no shift
_AGREEING: Final = 1.25
"""How many times more an error costs that is the same share of all values of a class."""
_MOST_SHIFT: Final = 0.2
_MET: Final = 0.1  # of 4096


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

    def tables(self, *, shifted: bool = True) -> Tables:
        """Tables of what was counted, signs taken alike, and of the prior.

        Args:
            shifted: whether levels stand for a little more than the mean of their values, see
                `_shift`. Levels that are counted while tables are still found are to be chosen
                without: a larger point has fewer, larger values, whose shift is larger again.
        """
        counted = self._symbols + self._prior
        plain = counted[:, : SYMBOLS - 1]
        even = (plain + plain.flip(1)) / 2
        raw = self._shifts > 0  # there, high = q >> k is not symmetric
        plain = torch.where(raw[:, None], plain, even)
        shares = torch.cat([plain, counted[:, -1:]], 1)
        shares /= shares.sum(1, keepdim=True)
        points = torch.arange(MIDDLE + 1.0).expand(self.classes, -1).double()
        points = torch.where(self._levels >= _FEW, self._sums / self._levels.clamp(min=1), points)
        points[:, 0] = 0
        if shifted:
            points[:, 1:] += self._shift(points)[:, None]
        return Tables(_rounded(shares), self._shifts, points.float().contiguous())

    def _shift(self, points: Tensor) -> Tensor:
        """By how much all levels but 0 should stand for more, `[E]`, in steps.

        Means have the least error, but they and the levels of 0 make values smaller all together.
        Errors of many tokens that point the same way are not averaged out by attention: they cost
        the predictions more than others of their size. The shift is the one that is least in the
        mean square of the error and `_AGREEING` times that of what all values lose a share of.
        """
        count = self._levels.sum(1).clamp(min=1)
        coded = self._levels[:, 1:].sum(1)
        square = (self._squares / count).clamp(min=1e-30)
        size = self._sums[:, 1:].sum(1) / count
        lost = 1 - (self._sums * points).sum(1) / count / square
        slack = (self._levels * points - self._sums)[:, 1:].sum(1) / count
        wanted = _AGREEING * size * lost - slack
        found = wanted / (coded / count + _AGREEING * size.square() / square).clamp(min=1e-30)
        settled = (coded >= _MANY) & (self._shifts == 0)
        return torch.where(settled, found.clamp(0, _MOST_SHIFT), 0.0)


def _rounded(shares: Tensor) -> Tensor:
    """Frequencies of 4096 in all nearest to shares `[E, 32]`.

    The escape has one at least, and so has a level of 1 that is met at all: rounded away it would
    take the escape's bits, so that none was ever chosen.
    """
    exact = shares * TOTAL
    exact[:, -1].clamp_(min=1)
    ones = exact[:, [MIDDLE - 1, MIDDLE + 1]]
    exact[:, [MIDDLE - 1, MIDDLE + 1]] = torch.where(ones > _MET, ones.clamp(min=1), ones)
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
