"""Evictions before lexico-residual: what is freed gets cheaper, what is kept stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lexico_codec.codecs import Place, ResidualCodec
from lexico_codec.geometry import Geometry, Rope
from lexico_lab.evaluation.ways import Way, way_of
from lexico_lab.published import eviction
from lexico_lab.studies.freed import SHARES, _adjoint, evictions, freed
from tests.support.residual_sets import products, residual_set, transform_of

LAYERS, HEADS, DIM, TOKENS = 2, 3, 16, 63
STORED = slice(4, 50)
ROPE = Rope(tuple(10000.0 ** (-i / 8) for i in range(8)))
SET = residual_set(LAYERS, HEADS, DIM, 1, 1, 24)
STEP = 0.5


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    with products(quick=False):
        yield


def states() -> Tensor:
    """`[layers, 2, kv_heads, tokens, dim]`, in values that float16 holds."""
    shape = (LAYERS, 2, HEADS, TOKENS, DIM)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return (3 * drawn).half().float()


def through(kept: Tensor) -> Tensor:
    return freed(states(), kept, STORED, transform_of(SET), STEP, ROPE)


def random_kept(share: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(LAYERS, HEADS, STORED.stop - STORED.start, generator=generator) < share


def size_of(made: Tensor) -> int:
    group = made[:, :, :, STORED].transpose(2, 3).half().contiguous()
    return len(ResidualCodec(step=STEP).encode(group, Place(0, STORED.start, ROPE), SET))


def test_every_usual_eviction_is_before_every_codec() -> None:
    def frames(step: float) -> Way:
        name, geometry = (
            f"lexico-residual step={step}",
            Geometry(LAYERS, HEADS, DIM, "float16", ROPE),
        )
        return way_of(name, "lexico-residual", {"step": step}, geometry, 16, SET)

    made = evictions(frames(step) for step in (0.7, 1.5))
    assert len({one.name for one in made}) == 2 * len(eviction.USUAL)
    assert {one.curve for one in made} == {f"{one} + lexico-residual" for one in eviction.USUAL}
    assert made[0].name == "SnapKV, 90 % kept + lexico-residual step=0.7"
    assert all(one.eviction.fraction == SHARES[one.eviction.method] for one in made)
    kept = random_kept(0.9)
    coded = made[0].states(states(), kept, STORED)
    assert torch.equal(coded, freed(states(), kept, STORED, transform_of(SET), 0.7, ROPE))


def test_another_codec_fills_nothing() -> None:
    geometry = Geometry(LAYERS, HEADS, DIM, "float16", ROPE)
    (first, *_) = evictions([way_of("raw", "raw", {}, geometry, 16)])
    with pytest.raises(ValueError, match="raw: codec lexico-residual"):
        first.states(states(), random_kept(0.9), STORED)


def test_what_is_kept_stays() -> None:
    kept = random_kept(0.5)
    made, exact = through(kept), states()
    stays = torch.ones(LAYERS, HEADS, TOKENS, dtype=torch.bool)
    stays[:, :, STORED] = kept
    stays = stays[:, None].expand(-1, 2, -1, -1)
    torch.testing.assert_close(made[stays], exact[stays], atol=1e-4, rtol=1e-5)
    assert (made - exact).abs()[~stays].mean() > 0.5


def test_what_is_freed_takes_fewer_bytes() -> None:
    sizes = [size_of(through(random_kept(share))) for share in (1.0, 0.5, 0.1)]
    assert sizes[0] == pytest.approx(size_of(states()), rel=0.01)
    assert sizes[1] < 0.9 * sizes[0]
    assert sizes[2] < 0.9 * sizes[1]


def test_the_adjoint_of_analysis() -> None:
    transform = transform_of(SET)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2 * LAYERS, HEADS * DIM, 7, generator=generator)
    c = torch.randn(2 * LAYERS * HEADS * DIM, 7, generator=generator)
    moved = transform.analyse(0, x) - transform.analyse(0, torch.zeros_like(x))
    there, back = (moved * c).sum(0), (x * _adjoint(transform, c)).sum((0, 1))
    size = moved.norm(dim=0) * c.norm(dim=0)  # Q is stored rounded: its transpose nearly inverts it
    assert ((there - back).abs() < 2e-3 * size).all()
