"""Components multiplied back into keys and values: compiled against dense, by every ISA."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexico_codec.kernels import library
from lexico_codec.kernels.library import ISA_VARIABLE
from lexico_codec.kernels.synthesis import compiled, products
from lexico_codec.kernels.synthesis.compiled import PackedFactors, panels_of, shorts_of, tile_ends
from lexico_codec.kernels.synthesis.products import Factors
from lexico_proto.errors import ConfigurationError
from tests.support.residual_sets import residual_set, slow_bfloat16, transform_of

pytestmark = pytest.mark.skipif(not library.available(), reason="the library is not compiled")


@pytest.fixture(autouse=True, scope="module")
def compiled_products() -> Iterator[None]:
    """A CPU with AMX would multiply otherwise."""
    with slow_bfloat16():
        yield


@pytest.fixture(params=library.supported() if library.available() else ())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(ISA_VARIABLE, request.param)
    return str(request.param)


@dataclass(frozen=True)
class Case:
    """A transform of small whole numbers."""

    factors: Factors
    arranged: Tensor
    kept: int

    @classmethod
    def of(cls, tables: int, blocks: int, d: int, second: int, tokens: int, density: float) -> Self:
        generator = torch.Generator().manual_seed(tables * d + second + tokens)
        size = tables * blocks * d

        def whole(*shape: int) -> Tensor:
            return torch.randint(-3, 4, shape, generator=generator).float()

        selected = torch.randperm(size, generator=generator)[:second].sort().values
        factors = Factors(selected, whole(second, second), whole(tables, blocks, d, d))
        arranged = whole(size + second, tokens)
        arranged *= torch.rand(arranged.shape, generator=generator) < density
        kept = second * 2 // 3
        arranged[size + kept :] = 0
        arranged[selected] = float("nan")  # is not read
        return cls(factors, arranged, kept)

    def dense(self, wanted: range, columns: range) -> Tensor:
        return products.synthesise(self.arranged.clone(), self.factors, self.kept, wanted, columns)

    def sparse(self, wanted: range, columns: range) -> Tensor:
        packed = PackedFactors(
            self.factors.selected,
            shorts_of(panels_of(self.factors.cross.mT)),
            panels_of(self.factors.bases),
        )
        return compiled.synthesise(self.arranged, packed, self.kept, wanted, columns)


def check_near(made: Tensor, exact: Tensor, whole: Tensor | None = None) -> None:
    """Q is multiplied with in 16 bits, the bases in float32."""
    most = float((exact if whole is None else whole).abs().max())
    torch.testing.assert_close(made, exact, rtol=0, atol=2e-3 * (1 + most))


SHAPES = [
    pytest.param(shape, id="T{}-B{}-d{}-R{}-tokens{}-density{}".format(*shape))
    for shape in [
        (2, 1, 1, 0, 1, 1.0),
        (2, 1, 7, 5, 3, 0.3),
        (4, 1, 64, 65, 64, 0.1),
        (6, 3, 20, 130, 65, 0.5),
        (4, 2, 100, 300, 130, 0.0),
        (2, 1, 192, 200, 33, 1.0),
    ]
]


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_those_of_the_twin(isa: str, shape: tuple[int, int, int, int, int, float]) -> None:
    case = Case.of(*shape)
    tables, blocks, d = shape[:3]
    whole = case.dense(range(tables), range(blocks * d))
    made = case.sparse(range(tables), range(blocks * d))
    check_near(made, whole)
    for first, end in {(0, 1), (tables - 1, tables), (1, tables)}:
        for start, stop in {(0, blocks * d), (blocks * d // 3, blocks * d), (0, 1), (0, 0)}:
            part = case.sparse(range(first, end), range(start, stop))
            assert torch.equal(part, made[first:end, :, start:stop])


@settings(max_examples=40, deadline=None)
@given(
    tables=st.integers(1, 4),
    blocks=st.integers(1, 3),
    d=st.integers(1, 70),
    second=st.integers(0, 200),
    tokens=st.integers(1, 70),
    density=st.floats(0, 1),
    data=st.data(),
)
def test_any_part_of_any_shape(
    tables: int, blocks: int, d: int, second: int, tokens: int, density: float, data: st.DataObject
) -> None:
    case = Case.of(tables, blocks, d, min(second, tables * blocks * d), tokens, density)
    first, start = data.draw(st.integers(0, tables - 1)), data.draw(st.integers(0, blocks * d - 1))
    wanted = range(first, data.draw(st.integers(first + 1, tables)))
    columns = range(start, data.draw(st.integers(start + 1, blocks * d)))
    whole = case.dense(range(tables), range(blocks * d))
    part = whole[wanted.start : wanted.stop, :, columns.start : columns.stop]
    # What 16 bits lose goes by what is summed, which the part may hardly show.
    check_near(case.sparse(wanted, columns), part, whole)


@settings(max_examples=30, deadline=None)
@given(
    second=st.integers(1, 300),
    density=st.floats(0, 1),
    spread=st.floats(0, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_sum_is_further_off_than_its_rounding(
    second: int, density: float, spread: float, seed: int
) -> None:
    """Sums of a tile: half a unit a product, and what rounding of both sides adds."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        wide = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (wide * torch.exp(spread * torch.rand(shape, generator=generator))).float()

    cross, values = drawn(second, second), drawn(second, 9)
    values *= torch.rand(values.shape, generator=generator) < density
    identity = torch.eye(second)[None, None]
    shorts = shorts_of(panels_of(cross.mT))
    packed = PackedFactors(torch.arange(second), shorts, panels_of(identity))
    arranged = torch.cat([torch.full((second, 9), float("nan")), values])
    made = compiled.synthesise(arranged, packed, second, range(1), range(second))[0]
    exact = (cross.double() @ values.double()).T
    most = torch.zeros_like(exact)
    first = 0
    for tile, end in enumerate(tile_ends(second)):
        part, first = values[first:end].double(), end
        count = (part != 0).sum(0)
        units = part.norm(dim=0)[:, None] / 32600 * shorts.units[:, tile].repeat_interleave(64)
        most += (count / 2 + count.sqrt() + 1)[:, None] * units[:, :second]
    assert bool(((made - exact).abs() <= most + 1e-5 * exact.abs()).all())


def test_sums_as_large_as_they_can_be_do_not_wrap(isa: str) -> None:
    """Values along a column of Q: their sum is the product of both lengths."""
    column = torch.ones(128)
    for signs in (column, -column, column * torch.tensor([1.0, -1.0]).repeat(64)):
        packed = PackedFactors(
            torch.arange(128),
            shorts_of(panels_of(signs[:, None].expand(128, 128).contiguous())),
            panels_of(torch.eye(128)[None, None]),
        )
        arranged = torch.cat([torch.zeros(128, 3), signs[:, None].expand(128, 3)])
        made = compiled.synthesise(arranged, packed, 128, range(1), range(128))
        torch.testing.assert_close(made, torch.full((1, 3, 128), 128.0), rtol=2e-3, atol=0)


def test_threads_change_no_bit() -> None:
    case = Case.of(6, 1, 64, 130, 100, 0.5)
    packed = PackedFactors(
        case.factors.selected,
        shorts_of(panels_of(case.factors.cross.mT / 7)),
        panels_of(case.factors.bases / 7),
    )
    threads, made = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            given_ = (case.arranged / 3, packed, case.kept, range(6), range(64))
            made.append(compiled.synthesise(*given_))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


@pytest.mark.parametrize("wild", [float("inf"), float("-inf"), float("nan"), 3e38])
def test_one_wild_token_leaves_the_others_alone(isa: str, wild: float) -> None:
    case = Case.of(2, 1, 20, 15, 9, 0.5)
    before = case.sparse(range(2), range(20))
    case.arranged[40, 3] = wild
    after = case.sparse(range(2), range(20))
    others = torch.arange(9) != 3
    assert torch.equal(after[:, others], before[:, others])


def test_panels_hold_columns_and_shorts_are_near_them() -> None:
    matrix = torch.arange(3 * 70, dtype=torch.float32).view(3, 70)
    panels = panels_of(matrix)
    assert panels.shape == (2, 3, 64)
    assert torch.equal(panels[0], matrix[:, :64])
    assert torch.equal(panels[1, :, :6], matrix[:, 64:])
    assert not bool(panels[1, :, 6:].any())
    shorts = shorts_of(panels)
    assert (shorts.values.shape, shorts.values.dtype) == ((2, 3, 64), torch.int16)
    assert shorts.units.shape == (2, 1)
    back = shorts.values * (shorts.units * 2.0**-15)[..., None]
    torch.testing.assert_close(back, panels, rtol=0, atol=float(panels.norm()) / 65000)


def test_tiles_are_small_where_components_are_strong() -> None:
    ends = {1: [1], 32: [32], 33: [32, 33], 128: [32, 64, 96, 128], 129: [32, 64, 96, 128, 129]}
    assert {rows: tile_ends(rows) for rows in ends} == ends
    assert tile_ends(300) == [32, 64, 96, 128, 256, 300]


def test_matrices_of_zeros_have_units_too() -> None:
    shorts = shorts_of(torch.zeros(1, 130, 64))
    assert not bool(shorts.values.any())
    assert bool((shorts.units > 0).all())


@pytest.mark.parametrize(
    "shape", [(2, 3, 16, 1, 1, 24), (4, 2, 9, 2, 2, 0), (6, 5, 4, 3, 5, 1), (2, 3, 16, 1, 3, 96)]
)
def test_transforms_restore_by_both(isa: str, shape: tuple[int, ...]) -> None:
    """No vector errs by more than the rounding of the matrices."""
    transform = transform_of(residual_set(*shape))
    tables, size = 2 * transform.run_layers, shape[1] * shape[2]
    for run in range(transform.runs):
        arranged = torch.zeros(transform.rows, 40)
        places = transform.places(run, torch.device("cpu")).long()
        count = len(places) // 2
        drawn = torch.randn(count, 40, generator=torch.Generator().manual_seed(run))
        arranged[places[:count]] = drawn
        for wanted in (None, range(tables - 1, tables)):
            for columns in (None, slice(1, size // 2)):
                parts = [
                    transform.restored(run, arranged.clone(), count, wanted, columns, kernel=kernel)
                    for kernel in ("compiled", "naive")
                ]
                assert parts[0].shape == parts[1].shape
                assert (parts[0] - parts[1]).norm() <= 2**-8 * parts[1].norm()


def test_an_unknown_kernel_is_refused() -> None:
    transform = transform_of(residual_set(2, 3, 16))
    with pytest.raises(ConfigurationError, match="kernel 'fast'"):
        transform.restored(0, torch.zeros(transform.rows, 1), 0, kernel="fast")
