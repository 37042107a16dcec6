"""The learned transform: inverted by its synthesis; features, gains and classes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from lexico_codec.sets.transform import (
    CLASSES_AN_OCTAVE,
    ENERGIES,
    GAINS,
    LEAST_OCTAVE,
    classes_of,
    features,
)
from tests.support.residual_sets import (
    products,
    residual_set,
    residual_tensors,
    set_of,
    transform_of,
)
from tests.support.transform_sets import COUNT, TENSORS
from tests.support.transform_sets import exact_products as exact_products

SHAPES = [
    pytest.param(shape, id="L{}-H{}-D{}-runs{}-blocks{}-joint{}".format(*shape))
    for shape in [
        (1, 1, 7, 1, 1, 3),
        (2, 3, 16, 1, 1, 24),
        (4, 2, 9, 2, 2, 0),
        (6, 5, 4, 3, 5, 1),
        (2, 3, 16, 1, 3, 10**6),
    ]
]
MOST_ADDED, LEAST_ADDED = GAINS[-1] + 2 * ENERGIES[-1], GAINS[0] + 2 * ENERGIES[0]


# Analysis and synthesis


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [1, 33])
def test_synthesis_is_the_inverse_of_analysis(shape: tuple[int, ...], tokens: int) -> None:
    layers, heads, dim, runs, blocks, joint = shape
    transform = transform_of(residual_set(layers, heads, dim, runs, blocks, joint))
    assert (transform.layers, transform.runs, transform.run_layers) == (
        layers,
        runs,
        layers // runs,
    )
    generator = torch.Generator().manual_seed(1)
    size = 2 * layers // runs
    for run in range(runs):
        x = 3 * torch.randn(size, heads * dim, tokens, generator=generator)
        components = transform.analyse(run, x)
        assert components.shape == (size * heads * dim, tokens)
        torch.testing.assert_close(
            transform.synthesise(run, components).mT, x, atol=3e-5, rtol=3e-5
        )
        made = transform.synthesise(run, x.view(-1, tokens)).mT.contiguous()
        again = transform.analyse(run, made)
        torch.testing.assert_close(again, x.view(-1, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_missing_components_are_zeros(shape: tuple[int, ...]) -> None:
    layers, heads, dim, runs, blocks, joint = shape
    transform = transform_of(residual_set(layers, heads, dim, runs, blocks, joint))
    count = transform.order.shape[1]
    components = torch.randn(count, 5, generator=torch.Generator().manual_seed(2))
    for run in range(runs):
        for kept in {0, 1, 2, count // 3, count // 2, count - 1, count}:
            padded = components.clone()
            padded[kept:] = 0
            few = transform.synthesise(run, components[:kept].contiguous())
            torch.testing.assert_close(few, transform.synthesise(run, padded), atol=1e-5, rtol=1e-5)
    nothing = transform.synthesise(runs - 1, components[:0])
    means = transform.means[-2 * layers // runs :].flatten(1)[:, None]
    torch.testing.assert_close(nothing, means.expand_as(nothing))


def test_quick_products_round_to_bfloat16() -> None:
    """No component errs by more than a rounding of its token's length."""
    x = 3 * torch.randn(4, 48, 50, generator=torch.Generator().manual_seed(1))
    x[0, 0] *= 1000
    exact = transform_of(residual_set(2, 3, 16))
    components = exact.analyse(0, x)
    made = exact.synthesise(0, components)
    with products(quick=True):
        rough = transform_of(residual_set(2, 3, 16))
        assert rough is not exact
        off = (rough.analyse(0, x) - components).abs()
        assert bool((off <= 2**-8 * components.norm(dim=0)).all())
        again = rough.synthesise(0, components)
    assert (again.dtype, again.shape) == (torch.float32, made.shape)
    assert float((again - made).norm() / made.norm()) < 2**-8


def test_input_is_left_alone() -> None:
    transform = transform_of(residual_set(2, 3, 16))
    x = torch.randn(4, 48, 9)
    before = x.clone()
    components = transform.analyse(0, x)
    kept = components.clone()
    transform.synthesise(0, components)
    assert torch.equal(x, before)
    assert torch.equal(components, kept)


def test_deviations_of_the_test_sets_are_right() -> None:
    """What every other test with these sets rests on."""
    transform = transform_of(residual_set(2, 3, 16))
    sizes = torch.tensor([4.0, 1.0, 4.0, 1.0])[:, None, None]
    x = sizes * torch.randn(4, 48, 4000, generator=torch.Generator().manual_seed(0))
    x += transform.means.view(4, 48, 1)
    measured = transform.analyse(0, x).square().mean(1).sqrt()
    torch.testing.assert_close(measured, transform.deviations[0], rtol=0.06, atol=0)


# Gains and classes


def test_features() -> None:
    components = torch.randn(600, 7, generator=torch.Generator().manual_seed(0))
    components[3, 0] = 1e6
    deviations = torch.linspace(2, 0.5, 600)
    found = features(components, deviations, 5)
    assert found.shape == (13, 7)
    unit = components / deviations[:, None]
    assert float(found[3, 0]) == 6.0
    torch.testing.assert_close(found[:5, 1:], unit[:5, 1:].clamp(-6, 6))
    ends = [0, 8, 32, 128, 512, 600]
    for band, (a, b) in enumerate(pairwise(ends)):
        expected = unit[a:b].double().square().mean(0).clamp(max=1e8).log().float()
        torch.testing.assert_close(found[5 + band], expected)
    assert bool((found[10:] == 0).all()), "bands without components"
    assert bool(features(torch.zeros(9, 2), torch.ones(9), 3).isfinite().all())


def test_gains_are_whole_and_in_range() -> None:
    tensors = residual_tensors(2, 3, 16)
    tensors["residual.gains"][:, 0] = 4  # of the first component
    tensors["residual.gains"][:, -9:] = 0
    transform = transform_of(set_of(tensors))
    components = 4 * torch.randn(192, 500, generator=torch.Generator().manual_seed(0))
    gains = transform.gains_of(0, components)
    assert gains.dtype == torch.int8
    assert (int(gains.min()), int(gains.max())) == (GAINS[0], GAINS[-1])
    assert len(set(gains.tolist())) == len(GAINS)
    weights = transform.gains[0].double()
    eta = features(components, transform.deviations[0], 8).double()
    thirds = 3 * (weights[:-1] @ eta + weights[-1]) / (2 * math.log(2))
    assert float((gains - thirds.clamp(GAINS[0], GAINS[-1])).abs().max()) <= 0.501


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38, 0.0])
def test_gains_of_what_overflowed(value: float) -> None:
    transform = transform_of(residual_set(2, 3, 16))
    gains = transform.gains_of(0, torch.full((192, 3), value))
    assert bool(((gains >= GAINS[0]) & (gains <= GAINS[-1])).all())


def test_classes_are_thirds_of_octaves() -> None:
    step = 0.3
    deviations = step * torch.exp2(torch.arange(-30, 40) / CLASSES_AN_OCTAVE)
    found = classes_of(deviations, step, 46)
    wanted = torch.arange(-30, 40) - LEAST_OCTAVE * CLASSES_AN_OCTAVE
    assert found.dtype == torch.int16
    assert found.tolist() == wanted.clamp(-MOST_ADDED - 1, 46 - 1 - LEAST_ADDED).tolist()
    for extreme in (1e-300, 1e-45, 1e38, 1e300):
        some = classes_of(torch.tensor([1e-45, 1.0, 3e38]), extreme, 46).tolist()
        assert all(-14 <= one <= 61 for one in some)
        assert some == sorted(some)


def test_the_last_classes_reach_every_table_and_none() -> None:
    """With any gain and energies: what is below the first class is not coded, what is above the
    last one is.
    """
    least, most = classes_of(torch.tensor([1e-30, 1e30]), 1.0, 46).tolist()
    assert least + MOST_ADDED == -1
    assert most + LEAST_ADDED == 45


def test_classes_of_coefficients_come_first() -> None:
    transform = transform_of(set_of(TENSORS))
    found = transform.classes(1, 0.5)
    assert found.shape == (2 + COUNT,)
    assert found[:2].tolist() == classes_of(transform.coefficients[1] / 4, 0.5, 46).tolist()
    assert found[2:14].tolist() == classes_of(transform.remaining[1], 0.5, 46).tolist()
    assert found[14:].tolist() == classes_of(transform.deviations[1, 12:], 0.5, 46).tolist()
    assert torch.equal(transform.classes(1, 0.5), found)
    own = transform.steps["balanced"]
    assert transform.classes(1, own) is transform.classes(1, own), "made once"
    assert not torch.equal(transform.classes(1, 1.0), found)
