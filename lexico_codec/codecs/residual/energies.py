"""How strong the tokens and the bands of components of a page are against what its set expects.

The classes of codec lexico-residual rest on deviations over the training text. A token may be
stronger or weaker as a whole, and text of another kind has bands of components that vary more or
less. Both are measured to thirds of octaves, stored with the page and added to the classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lexico_codec.sets.transform import CLASSES_AN_OCTAVE, ENERGIES

_LEAST_BAND: Final = 16
_BAND_FRACTION: Final = 8  # a band is as wide as an eighth of what comes before it
_MOST_STEPS: Final = 8  # components whose deviation is under an eighth of a step say nothing
_GAUSSIAN: Final = math.sqrt(math.pi / 2)  # deviation over mean magnitude


@cache
def band_ends(components: int) -> tuple[int, ...]:
    """Where the bands of so many components end."""
    ends = [0]
    while ends[-1] < components:
        ends.append(min(components, ends[-1] + max(_LEAST_BAND, ends[-1] // _BAND_FRACTION)))
    return tuple(ends[1:])


@cache
def band_of(components: int) -> Tensor:
    """`[components]` int64: the band of each."""
    ends = torch.tensor(band_ends(components), dtype=torch.int64)
    return torch.bucketize(torch.arange(components), ends, right=True)


def significant(deviations: Tensor, step: float) -> int:
    """How many of the first components energies are measured by, of `[C]` falling deviations."""
    return int((deviations.double() * _MOST_STEPS >= step).sum())


def bands_stored(deviations: Tensor, step: float) -> int:
    """How many bands have an energy that is stored; that of the others is 0."""
    counted = significant(deviations, step)
    return sum(begin < counted for begin in (0, *band_ends(len(deviations))[:-1]))


@dataclass(frozen=True, slots=True, eq=False)
class Energies:
    """Of a page."""

    tokens: Tensor
    """`[tokens]` int8 in `ENERGIES`."""
    bands: Tensor
    """`[bands stored]` int8 in `ENERGIES`."""
    ratios: Tensor
    """`[tokens]` float32: how many times stronger each token is than expected, in truth."""


def measure(components: Tensor, deviations: Tensor, step: float) -> Energies:
    """The energies of a page.

    Args:
        components: `[C, tokens]` as they are coded, gains not multiplied in.
        deviations: `[C]`, theirs, on the same device.
        step: the quantiser's.
    """
    counted, stored = significant(deviations, step), bands_stored(deviations, step)
    tokens = components.shape[1]
    if not counted:
        nothing = torch.zeros(tokens, dtype=torch.int8, device=components.device)
        return Energies(nothing, nothing[:0], torch.ones_like(components[0]))
    unit = components[:counted].abs() / deviations[:counted, None]
    ratios = unit.mean(0) * _GAUSSIAN
    of_tokens = _thirds(ratios)
    even = torch.exp2(-of_tokens.float() / CLASSES_AN_OCTAVE) * (_GAUSSIAN / tokens)
    sums = unit.new_zeros(stored)
    at = band_of(len(deviations))[:counted].to(unit.device)
    sums.index_add_(0, at, unit @ even)
    sizes = torch.bincount(at, minlength=stored)
    return Energies(of_tokens, _thirds(sums / sizes), ratios)


def spread(bands: Tensor, components: int, behind: int = 0) -> Tensor:
    """`[behind + components]` int16: the energy of each one's band, 0 where it is not stored, and
    before them as many zeros as they are to lie behind.
    """
    of_all = np.zeros(1 + len(band_ends(components)), np.int16)
    of_all[1 : 1 + len(bands)] = bands.numpy()
    return torch.from_numpy(np.repeat(of_all, _sizes(components, behind)))


@cache
def _sizes(components: int, behind: int) -> npt.NDArray[np.int64]:
    return np.diff((0, *band_ends(components)), prepend=-behind)


def _thirds(ratios: Tensor) -> Tensor:
    exact = torch.nan_to_num(ratios.log2() * CLASSES_AN_OCTAVE)  # of what overflowed, or nothing
    return exact.round().clamp(ENERGIES[0], ENERGIES[-1]).to(torch.int8)
