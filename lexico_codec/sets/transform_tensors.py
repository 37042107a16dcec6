"""The tensors of a transform in a dictionary set, read from an artefact that need not be trusted.

All names begin with `residual.`; T = 2 layers tables, D = kv_heads * head_dim, run = layers that
are coded together, C = 2 run D components, R of them in the second transform, F features:

    residual.means        F32 [T, kv_heads, head_dim]
    residual.bases        F16 [T, blocks, d, d]     B / scale, d = D / blocks
    residual.scales       F32 [T]
    residual.selected     I32 [runs, R]             rising
    residual.cross        I8  [runs, R, R]          Q, columns by falling deviation
    residual.cross_scales F32 [runs, R]             of a column
    residual.order        I32 [runs, C]
    residual.deviations   F32 [runs, C]             falling, in that order
    residual.gains        F32 [runs, F + 9]         weights of features, bias
    residual.atoms        I8  [runs, N, m]          over the first m components; N = 0: none
    residual.remaining    F32 [runs, m]             deviations of those, atoms taken off
    residual.coefficients F32 [runs, s]             deviation of each coefficient
    residual.frequencies  I32 [E, 32]               of `kernels.entropy.Tables`, with the next two
    residual.shifts       I32 [E]
    residual.points       F32 [E, 16]
    residual.steps        F32 [3]                   of the qualities near, balanced, small
"""

from __future__ import annotations

from typing import Final, NoReturn

import torch
from torch import Tensor

from lexico_codec.kernels.entropy.tables import MAX_CLASSES, SYMBOLS, Tables
from lexico_codec.limits import (
    MAX_COMPONENTS,
    MAX_SET_HEAD_DIM,
    MAX_TRANSFORM_ATOMS,
    MAX_TRANSFORM_SPARSITY,
)
from lexico_codec.sets.tensors import View, read_tensor, refuse
from lexico_codec.sets.transform import (
    BANDS,
    QUALITIES,
    Transform,
)


def parse_transform(views: dict[str, View], layers: int, kv_heads: int) -> Transform:
    """The transform of an artefact's tensors, which need not be trusted.

    Args:
        views: the tensors by the rest of their names.
        layers, kv_heads: of the model.

    Raises:
        InvalidInput: a tensor that is missing, too many, or not as it must be.
    """
    if views.keys() != _NAMES:
        _refuse(f"its tensors are {', '.join(sorted(_NAMES))}")

    def take(name: str, dtype: str, *wanted: int) -> Tensor:
        given = tuple(views[name]["shape"])
        if len(given) != len(wanted) or any(
            s not in (-1, g) for s, g in zip(wanted, given, strict=True)
        ):
            _refuse(f"{name} must be {dtype} {list(wanted)}, not {list(given)}")
        return read_tensor(f"residual.{name}", views[name], dtype, given)

    means = take("means", "F32", 2 * layers, kv_heads, -1)
    if not 1 <= means.shape[2] <= MAX_SET_HEAD_DIM:
        _refuse(f"means are of head_dim {means.shape[2]}, outside 1..{MAX_SET_HEAD_DIM}")
    width = kv_heads * means.shape[2]
    bases = take("bases", "F16", 2 * layers, -1, -1, -1).float()
    blocks, d = bases.shape[1:3]
    if bases.shape[3] != d or blocks * d != width:
        _refuse("bases do not cover the heads")
    order = take("order", "I32", -1, -1).long()
    runs, count = order.shape
    if not runs or layers % runs or count != 2 * (layers // runs) * width:
        _refuse("order does not hold every component of runs of equal length")
    if count > MAX_COMPONENTS:
        _refuse(f"a run of {count} components, at most {MAX_COMPONENTS}")
    if not bool((order.sort(1).values == torch.arange(count)).all()):
        _refuse("order is no permutation")
    selected = take("selected", "I32", runs, -1).long()
    chosen = selected.shape[1]
    if chosen and not (
        bool((selected.diff(dim=1) > 0).all())
        and bool((selected >= 0).all())
        and bool((selected < count).all())
    ):
        _refuse("selected must rise and name components")
    cross = take("cross", "I8", runs, chosen, chosen).float()
    cross = cross * take("cross_scales", "F32", runs, chosen)[:, None]
    deviations = take("deviations", "F32", runs, count)
    if not bool((deviations > 0).all()) or bool((deviations.diff(dim=1) > 0).any()):
        _refuse("deviations must be positive and must not rise")
    gains = take("gains", "F32", runs, -1)
    if not BANDS + 1 <= gains.shape[1] <= count + BANDS + 1:
        _refuse("gains must have a weight for each feature, and a bias")
    coefficients = take("coefficients", "F32", runs, -1)
    stored = take("atoms", "I8", runs, -1, -1)
    if coefficients.shape[1] > MAX_TRANSFORM_SPARSITY or stored.shape[1] > MAX_TRANSFORM_ATOMS:
        _refuse(f"at most {MAX_TRANSFORM_SPARSITY} of {MAX_TRANSFORM_ATOMS} atoms")
    if stored.shape[2] > count or (
        coefficients.shape[1] and (coefficients.shape[1] > min(stored.shape[1:]))
    ):
        _refuse("atoms are fewer, or other, than their coefficients need")
    squares = stored.int().square().sum(2, keepdim=True)
    remaining = take("remaining", "F32", runs, stored.shape[2])
    some = bool((squares > 0).all()) and bool((coefficients > 0).all())
    if not some or not bool((remaining > 0).all()):
        _refuse("atoms need a direction, coefficients and what remains a deviation")
    classes = views["shifts"]["shape"][0] if len(views["shifts"]["shape"]) == 1 else 0
    if not 1 <= classes <= MAX_CLASSES:
        _refuse(f"1..{MAX_CLASSES} classes")
    shifts = take("shifts", "I32", classes)
    if bool(((shifts < 0) | (shifts > 255)).any()):
        _refuse("shifts are out of range")
    tables = Tables(
        take("frequencies", "I32", classes, SYMBOLS),
        shifts.to(torch.uint8),
        take("points", "F32", classes, SYMBOLS // 2),
    )
    scales = take("scales", "F32", 2 * layers)
    steps = take("steps", "F32", len(QUALITIES))
    if not bool((scales > 0).all()) or not bool((steps > 0).all()):
        _refuse("scales and steps must be positive")
    return Transform(
        means=means,
        bases=bases * scales[:, None, None, None],
        selected=selected,
        cross=cross,
        order=order,
        deviations=deviations,
        gains=gains,
        atoms=stored.float() / squares.float().sqrt(),
        remaining=remaining,
        coefficients=coefficients,
        tables=tables,
        steps=dict(zip(QUALITIES, steps.tolist(), strict=True)),
    )


_NAMES: Final = {
    *("means", "bases", "scales", "selected", "cross", "cross_scales", "order", "deviations"),
    *("gains", "atoms", "remaining", "coefficients", "frequencies", "shifts", "points", "steps"),
}


def _refuse(why: str) -> NoReturn:
    refuse(f"residual: {why}")
