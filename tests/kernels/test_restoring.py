"""Streams to a cache's memory in two calls: against the four steps that they stand for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexico_codec.geometry import Rope
from lexico_codec.kernels import library
from lexico_codec.kernels.dispatch import KERNEL_VARIABLE
from lexico_codec.kernels.entropy import coder
from lexico_codec.kernels.entropy.streams import Streams
from lexico_codec.kernels.layout import rows as layout
from lexico_codec.kernels.layout.sparse import Sparse
from lexico_codec.kernels.library import ISA_VARIABLE
from lexico_codec.kernels.memory import TableMemory
from lexico_codec.kernels.synthesis.compiled import Arranged, Laid, arranged
from lexico_codec.rope import turn_at
from lexico_proto.errors import DamagedFrame
from tests.support.entropy_problems import Problem, typical
from tests.support.residual_sets import residual_set, slow_bfloat16, transform_of

pytestmark = pytest.mark.skipif(not library.available(), reason="the library is not compiled")
ATOMS, STEP = 50, 1.5


@pytest.fixture(autouse=True, scope="module")
def compiled_products() -> Iterator[None]:
    """A CPU with AMX would multiply otherwise."""
    with slow_bfloat16():
        yield


@pytest.fixture(params=library.supported() if library.available() else ())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(ISA_VARIABLE, request.param)
    return str(request.param)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def streams_of(problem: Problem, body: bytes) -> Streams:
    offsets = problem.offsets
    by = torch.zeros(problem.tokens, dtype=torch.int8) if offsets is None else offsets
    return Streams.of(body, problem.classes, by, problem.tables)


def in_places(made: Arranged) -> Tensor:
    """`[rows, tokens]`: values where they are, zeros where none are."""
    assert made.where is not None
    filled = torch.zeros(made.length, 32 * len(made.where))
    for block, places in enumerate(made.where.tolist()):
        for row, place in enumerate(places):
            if place:
                filled[row, 32 * block : 32 * block + 32] = made.values[block, place - 1]
    return filled[:, : made.tokens]


def both(problem: Problem, sparsity: int, width: int, seed: int) -> tuple[Arranged, Tensor]:
    """Both in one call, and one after the other by the twins."""
    components = len(problem.levels) - sparsity + 5
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(ATOMS, (sparsity, problem.tokens), generator=generator)
    sparse = Sparse(indices, drawn(width, ATOMS, seed=seed), STEP)
    places = torch.randperm(components + 7, generator=generator)[:components].to(torch.int32)
    scales = drawn(problem.tokens, seed=seed).exp()
    body = problem.encode()
    values = problem.decode(body, "naive")
    rest = (scales, sparse, places, components + 7)
    expected = layout.arrange(values, *rest, torch.float32, kernel="naive")
    expected[~torch.isin(torch.arange(components + 7), places)] = 0  # are left as they were
    return arranged(streams_of(problem, body), *rest), expected


@pytest.mark.parametrize("tokens", [1, 32, 33, 64, 100, 300])
@pytest.mark.parametrize("sparsity", [0, 2])
def test_arranged_streams_are_those_of_the_twins(isa: str, tokens: int, sparsity: int) -> None:
    made, expected = both(typical(80, tokens, tokens, shifted=True), sparsity, 20, tokens)
    torch.testing.assert_close(in_places(made), expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    components=st.integers(4, 120),
    tokens=st.integers(1, 140),
    sparsity=st.integers(0, 3),
    width=st.integers(0, 40),
    shifted=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_streams_are_arranged(
    components: int, tokens: int, sparsity: int, width: int, shifted: bool, seed: int
) -> None:
    problem = typical(components, tokens, seed, shifted=shifted)
    made, expected = both(problem, sparsity, min(width, components - sparsity), seed)
    torch.testing.assert_close(in_places(made), expected, atol=1e-5, rtol=1e-5)


def test_what_is_zero_in_a_block_takes_no_place(isa: str) -> None:
    problem = typical(40, 64, 3, shifted=False)
    levels = problem.levels.clone()
    levels[10:, 32:] = 0
    made, _ = both(Problem(levels, problem.classes, None, problem.tables), 0, 0, 1)
    assert made.where is not None
    assert int((made.where[1] != 0).sum()) <= 10 < int((made.where[0] != 0).sum())


def test_threads_change_no_bit() -> None:
    problem, before = typical(80, 300, 5, shifted=True), torch.get_num_threads()
    try:
        made = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            made.append(in_places(both(problem, 2, 20, 5)[0]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


@pytest.mark.parametrize("cut", [2, 4, 40])
def test_damaged_streams_are_refused(isa: str, cut: int) -> None:
    problem = typical(80, 32, 1, shifted=True)
    body = bytearray(problem.encode())
    body[:4] = (int.from_bytes(body[:4], "little") - cut).to_bytes(4, "little")
    rest = (torch.ones(32), Sparse(torch.zeros(0, 32).long(), torch.zeros(0, 1), 1.0))
    with pytest.raises(DamagedFrame, match="does not end"):
        coder.decode(bytes(body[:-cut]), problem.classes, problem.offsets, problem.tables, 32)
    places = torch.arange(80, dtype=torch.int32)
    with pytest.raises(DamagedFrame, match="does not end"):
        arranged(streams_of(problem, bytes(body[:-cut])), *rest, places, 80)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 16, 1, 1, 24), (4, 2, 10, 2, 2, 0), (6, 5, 4, 3, 5, 1)])
def test_rows_are_finished_as_by_the_steps(
    isa: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    transform = transform_of(residual_set(*shape))
    heads, dim = transform.means.shape[1:]
    layers, tokens = transform.run_layers, 70
    rope = Rope(tuple(1.0 / (1 + i) for i in range(dim // 2)), "half", 1.25)
    turn = turn_at(torch.arange(9, 9 + tokens), rope)
    for run in range(transform.runs):
        rows = torch.zeros(transform.rows, tokens)
        places = transform.places(run, torch.device("cpu")).long()
        count = len(places) // 2
        rows[places[:count]] = drawn(count, tokens, seed=run)
        for of_layers, of_heads in ((range(layers), range(heads)), (range(1), range(1, heads))):
            wanted = range(2 * of_layers.start, 2 * of_layers.stop)
            columns = slice(of_heads.start * dim, of_heads.stop * dim)
            means = transform.means_of(run, torch.device("cpu"))[: len(wanted), columns]
            groups = [
                torch.full((len(of_layers), 2, tokens, len(of_heads), dim + 3), 7.0).to(dtype)
                for _ in range(2)
            ]
            one, other = (TableMemory.over(group[..., :dim]) for group in groups)
            assert transform.restores(one)
            given_rows = Arranged(len(rows), tokens, rows.clone(), None)
            transform.restore(run, given_rows, count, wanted, columns, Laid(means, turn, one))
            made = transform.restored(run, rows.clone(), count, wanted, columns)
            layout.scatter(made, means, turn, other, kernel="compiled")
            assert torch.equal(groups[0], groups[1])


def test_a_forced_twin_takes_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = transform_of(residual_set(2, 3, 16))
    memory = TableMemory.over(torch.zeros(2, 2, 5, 3, 16))
    assert transform.restores(memory)
    monkeypatch.setenv(KERNEL_VARIABLE, "naive")
    assert not transform.restores(memory)


def test_memory_out_of_reach_takes_the_steps() -> None:
    """Long vectors whose components lie apart."""
    transform = transform_of(residual_set(2, 3, 16))
    apart = torch.zeros(2, 2, 5, 1, 1030, 2)[..., 0]
    assert not transform.restores(TableMemory.over(apart))
