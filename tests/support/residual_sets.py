"""Small random sets for codec lexico-residual: well-conditioned bases, a random second transform,
gains that vary, atoms, and the tables of a Laplace distribution."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from lexico_codec.kernels.dispatch import Kernel, choose_on_cpu
from lexico_codec.sets import transform as transforms
from lexico_codec.sets.dictionary import DictionarySet, TransformSet
from lexico_codec.sets.transform import Transform
from lexico_lab.training.counts import Counts
from tests.support.dictionaries import set_info

STEPS = (0.0625, 0.25, 1.0)
"""Of the qualities near, balanced, small."""
SIZES = (4.0, 1.0)
"""Deviations of keys and values that the sets expect: those of `codec_suite.group_of`."""


def orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix in double precision."""
    drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q


def residual_tensors(
    layers: int,
    heads: int,
    dim: int,
    *,
    runs: int = 1,
    blocks: int = 1,
    joint: int = 24,
    sparsity: int = 1,
    atoms: int = 48,
    width: int = 32,
    predictors: int = 8,
    gain: float = 0.3,
    mean: float = 0.5,
    steps: tuple[float, ...] = STEPS,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The tensors of the family, whose deviations are right for `codec_suite.group_of`.

    Args:
        gain: size of the weights that predict gains; 0 for gains of 0.
        mean: size of the means.
    """
    generator = torch.Generator().manual_seed(seed)
    tables, d = 2 * layers, heads * dim // blocks
    count = tables * heads * dim // runs
    stretch = torch.exp2(torch.linspace(-1, 1, d, dtype=torch.float64))
    bases = torch.stack([orthogonal(d, generator) * stretch for _ in range(tables * blocks)]).view(
        tables, blocks, d, d
    )
    scales = bases.abs().amax((1, 2, 3)) / 1024
    sizes = torch.tensor(SIZES, dtype=torch.float64).repeat(layers)
    plain = (sizes[:, None] / stretch.repeat(blocks)[None]).view(runs, count)
    joint, width = min(joint, count), min(width, count)
    selected = torch.stack(
        [torch.randperm(count, generator=generator)[:joint].sort().values for _ in range(runs)]
    )
    second = torch.stack([orthogonal(joint, generator) for _ in range(runs)])
    cross_scales = second.abs().amax(1) / 127 if joint else torch.zeros(runs, 0)
    variances = plain.square()
    mixed = torch.stack(
        [q.square().T @ v[s] for q, v, s in zip(second, variances, selected, strict=True)]
    )
    variances = variances.scatter(1, selected, mixed)
    deviations, order = variances.sqrt().sort(1, descending=True)
    dictionary = torch.randn(runs, atoms, width, generator=generator)
    tables_of = Counts().tables()
    made = {
        "means": mean * torch.randn(tables, heads, dim, generator=generator),
        "bases": (bases / scales[:, None, None, None]).half(),
        "scales": scales.float(),
        "selected": selected.to(torch.int32),
        "cross": (second / cross_scales[:, None]).round().to(torch.int8),
        "cross_scales": cross_scales.float(),
        "order": order.to(torch.int32),
        "deviations": deviations.float(),
        "gains": gain * torch.randn(runs, min(predictors, count) + 9, generator=generator),
        "atoms": (dictionary * (127 / dictionary.abs().amax(2, keepdim=True)))
        .round()
        .to(torch.int8),
        "remaining": 0.95 * deviations[:, :width].float(),
        "coefficients": torch.full((runs, sparsity), 2 * float(deviations[:, 0].max())),
        "frequencies": tables_of.frequencies.to(torch.int32),
        "shifts": tables_of.shifts.to(torch.int32),
        "points": tables_of.points,
        "steps": torch.tensor(steps),
    }
    return {f"residual.{name}": tensor.contiguous() for name, tensor in made.items()}


def set_of(tensors: Mapping[str, Tensor]) -> TransformSet:
    """The set that has these tensors."""
    heads = tensors["residual.means"].shape[1]
    sparsity = tensors["residual.coefficients"].shape[1]
    named = {name.removeprefix("residual."): tensor for name, tensor in tensors.items()}
    return TransformSet.build(named, set_info(heads, sparsity))


@contextmanager
def products(*, quick: bool) -> Iterator[None]:
    """Makes transforms multiply in bfloat16, or exactly, whatever the machine does best.

    A transform keeps what it multiplies by: make, or ask for, sets inside of this.
    """
    with mock.patch.object(transforms, "_quick_bfloat16", return_value=quick):
        if quick:
            yield
            return
        with mock.patch.object(transforms, "choose_on_cpu", _dense_unless_asked):
            yield


@contextmanager
def slow_bfloat16() -> Iterator[None]:
    """As on a CPU without AMX: products are the compiled ones. Make, or ask for, sets inside."""
    with mock.patch.object(transforms, "_quick_bfloat16", return_value=False):
        yield


def _dense_unless_asked(operation: str, kernel: str | None) -> Kernel:
    return choose_on_cpu(operation, kernel or "naive")


def residual_set(
    layers: int,
    heads: int,
    dim: int,
    runs: int = 1,
    blocks: int = 1,
    joint: int = 24,
    sparsity: int = 1,
    gain: float = 0.3,
    mean: float = 0.5,
    seed: int = 0,
) -> TransformSet:
    """A set for any geometry, see `residual_tensors`; made once."""
    quick = transforms._quick_bfloat16(torch.device("cpu"))
    return _made(quick, layers, heads, dim, runs, blocks, joint, sparsity, gain, mean, seed)


@functools.cache
def _made(
    quick: bool,
    layers: int,
    heads: int,
    dim: int,
    runs: int,
    blocks: int,
    joint: int,
    sparsity: int,
    gain: float,
    mean: float,
    seed: int,
) -> TransformSet:
    return set_of(
        residual_tensors(
            layers,
            heads,
            dim,
            runs=runs,
            blocks=blocks,
            joint=joint,
            sparsity=sparsity,
            gain=gain,
            mean=mean,
            seed=seed,
        )
    )


def transform_of(dictionary: DictionarySet | None) -> Transform:
    """The transform of a set that has one."""
    assert isinstance(dictionary, TransformSet)
    return dictionary.transform


def fitted_to(group: Tensor, gain: float = 0.3) -> TransformSet:
    """A set whose means and scales are those of a group `[layers, 2, tokens, heads, dim]`."""
    layers, _, _, heads, dim = group.shape
    wide = group.double()
    tensors = residual_tensors(layers, heads, dim, gain=gain)
    means = wide.mean(2).flatten(0, 1)
    size = (wide - wide.mean(2, keepdim=True)).square().mean((2, 3, 4)).sqrt().flatten()
    wanted = torch.tensor(SIZES, dtype=torch.float64).repeat(layers)
    tensors["residual.means"] = means.float()
    tensors["residual.scales"] = (
        tensors["residual.scales"] * (size.clamp(min=1e-6) / wanted).float()
    )
    return set_of(tensors)
