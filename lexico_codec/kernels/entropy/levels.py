"""Which levels to code: the nearest ones, or smaller ones that save more bits than they cost error.

Rate-distortion choice: of the nearest level, the one below it and 0 the one that is least in
`(value - point)² + weight * bits`, bits being those of the static tables.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lexico_codec.kernels.dispatch import choose_on_cpu
from lexico_codec.kernels.entropy import compiled
from lexico_codec.kernels.entropy.tables import LEVEL_LIMIT, MIDDLE, TOTAL, Tables
from lexico_proto.errors import ShapeMismatch

ESCAPE_BITS: Final = 16.0
RATE_WEIGHT: Final = 0.025
"""Error that a bit is worth, in squared steps. For the error alone it would be 0.1155, the slope
(2 ln 2) / 12 of a uniform quantiser at high rate. But levels that are smaller than their values are
errors that agree with one another, which cost predictions more:
docs/research/errors-that-agree-cost-more.md."""


def choose_levels(
    values: Tensor,
    classes: Tensor,
    offsets: Tensor,
    tables: Tables,
    weight: float = RATE_WEIGHT,
    *,
    kernel: str | None = None,
) -> Tensor:
    """Levels `[components, tokens]` int32.

    Args:
        values: `[components, tokens]` float32, in steps. classes: `[components]` int16.
        offsets: `[tokens]` int8: added to the classes, as in `entropy.encode`.
        tables: of the classes.
        weight: of a bit, in squared steps.
        kernel: "compiled" or "naive" to force one.

    Raises:
        ShapeMismatch: classes or offsets of another shape or dtype.
        ConfigurationError: a forced kernel that is unknown or not there.
    """
    if classes.dtype != torch.int16 or classes.shape != values.shape[:1]:
        raise ShapeMismatch(f"classes: must be [{values.shape[0]}] int16")
    if offsets.dtype != torch.int8 or offsets.shape != values.shape[1:]:
        raise ShapeMismatch(f"offsets: must be [{values.shape[1]}] int8")
    if values.device.type == "cpu" and choose_on_cpu("choose_levels", kernel) == "compiled":
        given = (values.float().contiguous(), classes.contiguous(), offsets.contiguous())
        return compiled.choose_levels(*given, tables, _costs(tables), weight)
    return _naive(values, classes, offsets, tables, weight)


def _naive(
    values: Tensor, classes: Tensor, offsets: Tensor, tables: Tables, weight: float
) -> Tensor:
    most = tables.classes - 1
    effective = (classes.to(torch.int64)[:, None] + offsets.to(torch.int64)[None]).clamp(max=most)
    coded = effective >= 0
    effective = effective.clamp(min=0)
    size = values.abs()
    nearest = size.round().clamp(max=LEVEL_LIMIT)
    bits, points = _costs(tables).to(values.device), tables.points.to(values.device)

    def price(level: Tensor) -> Tensor:
        at = effective * (MIDDLE + 2) + level.clamp(max=MIDDLE + 1).long()
        near = effective * (MIDDLE + 1) + level.clamp(max=MIDDLE).long()
        point = torch.where(level <= MIDDLE, points.view(-1)[near], level)
        return (size - point).square() + weight * bits.view(-1)[at]

    best, least = nearest, price(nearest)
    for other in ((nearest - 1).clamp(min=0), torch.zeros_like(nearest)):
        cost = price(other)
        better = cost < least
        best, least = torch.where(better, other, best), torch.where(better, cost, least)
    raw = tables.shifts.to(values.device)[effective] > 0
    best = torch.where(raw, nearest, best)
    best = torch.where(coded, best, torch.zeros_like(best))
    return torch.where(values < 0, -best, best).to(torch.int32)


def _costs(tables: Tables) -> Tensor:
    """Bits of the magnitudes 0..15 and of larger ones, `[E, 17]` float32."""

    def make() -> Tensor:
        counted = tables.frequencies.double()
        of = torch.where(counted > 0, -(counted / TOTAL).log2(), counted[:, -1:] * 0 + 40)
        escape = -(counted[:, -1:] / TOTAL).log2() + ESCAPE_BITS
        of = torch.minimum(of, escape)
        upper, lower = of[:, MIDDLE:-1], of[:, : MIDDLE + 1].flip(1)
        return torch.cat([(upper + lower) / 2, escape], 1).float()

    return tables.form("costs", make)
