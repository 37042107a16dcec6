"""The compiled CPU kernel against the twin and scikit-learn, on every instruction set here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp_gram
from torch import Tensor

from lexico_codec.kernels import library
from lexico_codec.kernels.pursuit import compiled, naive
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_proto.errors import (
    ConfigurationError,
    InvalidInput,
    NonFiniteCache,
    ShapeMismatch,
)
from tests.support.waiting import PATIENCE_S

if not library.available():
    pytest.skip("the library is not compiled here", allow_module_level=True)

ISAS = library.supported()
TIE = 2e-5  # of ||x||: float32 cannot tell scores that close apart
ERROR_RATIO = 1e-4  # on ||x - x̂|| over the float64 twin's, and of ||x|| where that is nothing
SHAPES = [  # (m, N, s, rows)
    (1, 1, 1, 3),
    (1, 3, 1, 17),
    (5, 37, 5, 33),
    (63, 100, 9, 50),
    (64, 256, 8, 100),
    (64, 1000, 13, 41),
    (80, 100, 12, 65),
    (96, 515, 10, 40),
    (128, 1024, 16, 70),
    (130, 129, 7, 31),
    (256, 77, 20, 40),
    (512, 600, 6, 20),
]
ids = ["m{}-N{}-s{}-B{}".format(*shape) for shape in SHAPES]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(library.ISA_VARIABLE, request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("outliers", [False, True], ids=["even", "outliers"])
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
@pytest.mark.usefixtures("isa")
def test_picks_what_float64_picks(shape: tuple[int, int, int, int], outliers: bool) -> None:
    m, n, s, rows = shape
    x, atoms = _problem(m, n, rows, seed=m + n, outliers=outliers)
    _agrees(x, atoms, _encode(x, atoms, s))


@pytest.mark.usefixtures("isa")
def test_agrees_with_the_float32_twin() -> None:
    x, atoms = _problem(64, 500, 300, seed=3)
    ours, theirs = _encode(x, atoms, 8), naive.omp(x, atoms, 8)
    same = (ours.indices == theirs.indices).all(1)
    assert same.float().mean() > 0.99
    torch.testing.assert_close(
        ours.coefficients[same], theirs.coefficients[same], atol=2e-5, rtol=2e-4
    )


@pytest.mark.usefixtures("isa")
def test_agrees_with_scikit_learn() -> None:
    x, atoms = _problem(80, 130, 30, seed=4)
    wide = atoms.double()
    dense = orthogonal_mp_gram(
        (wide @ wide.T).numpy(), (wide @ x.double().T).numpy(), n_nonzero_coefs=7
    )
    codes = _encode(x, atoms, 7)
    ours = torch.zeros(30, 130).scatter_(1, codes.indices.long(), codes.coefficients)
    torch.testing.assert_close(ours, torch.from_numpy(dense).T.float(), atol=1e-4, rtol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    m=st.sampled_from([1, 2, 5, 16, 33, 64, 80, 96, 128]),
    n=st.integers(1, 150),
    rows=st.integers(0, 70),
    sparsity=st.integers(1, 40),
    tolerance=st.sampled_from([None, 0.0, 0.05, 0.3, 0.9]),
    outliers=st.booleans(),
    twins=st.booleans(),
    exponent=st.integers(-100, 100),
    seed=st.integers(0, 1 << 30),
)
def test_any_problem(
    m: int,
    n: int,
    rows: int,
    sparsity: int,
    tolerance: float | None,
    outliers: bool,
    twins: bool,
    exponent: int,
    seed: int,
) -> None:
    s = min(sparsity, m, n)
    x, atoms = _problem(m, n, rows, seed, outliers)
    if twins:
        atoms[n // 2 :] = atoms[: n - n // 2].clone()
    x = torch.ldexp(x, torch.tensor(exponent))
    with pytest.MonkeyPatch.context() as patch:
        answers = {}
        for name in ISAS:
            patch.setenv(library.ISA_VARIABLE, name)
            answers[name] = _encode(x, atoms, s, tolerance)
    _agrees(x, atoms, answers["generic"], tolerance)
    for one, other in combinations([name for name in ISAS if name != "generic"], 2):
        _equal(answers[one], answers[other])
    if ISAS[0] != "generic":
        _agrees(x, atoms, answers[ISAS[0]], tolerance)


@pytest.mark.parametrize("tolerance", [None, 0.3])
@pytest.mark.usefixtures("isa")
def test_a_row_alone_gives_the_same_bits(tolerance: float | None) -> None:
    x, atoms = _problem(65, 200, 150, seed=5)
    x[::7] *= 1e-3
    x[3::11] = 0
    batch = _encode(x, atoms, 12, tolerance)
    if tolerance:
        assert len(batch.counts.unique()) > 4  # rows leave and enter at different steps
    for row in range(0, 150, 3):
        _equal(_encode(x[row : row + 1], atoms, 12, tolerance), _rows(batch, slice(row, row + 1)))
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    _equal(_encode(x[order], atoms, 12, tolerance), _rows(batch, order))


@pytest.mark.usefixtures("isa")
def test_threads_change_nothing() -> None:
    x, atoms = _problem(64, 300, 1111, seed=6)
    torch.set_num_threads(1)
    one = _encode(x, atoms, 6, 0.2)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        _equal(_encode(x, atoms, 6, 0.2), one)


@pytest.mark.usefixtures("isa")
def test_the_callers_arithmetic_changes_nothing_and_stays() -> None:
    x, atoms = _problem(64, 100, 40, seed=18)
    x[:20] *= 1e-39
    expected = _encode(x, atoms, 6)
    dense = _reconstruct(expected, atoms)
    assert (expected.counts == 6).all()
    assert (expected.coefficients.abs() < 1e-37).any()
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor does not flush subnormals")
        codes = _encode(x, atoms, 6)
        rebuilt = _reconstruct(codes, atoms)
        still_flushed = torch.tensor(2.0**-126) * 0.5 == 0
    finally:
        torch.set_flush_denormal(False)
    assert still_flushed
    _equal(codes, expected)
    assert torch.equal(rebuilt, dense)


_FORKED = """
import os, torch
from lexico_codec.kernels.pursuit import compiled
torch.set_num_threads(3)
atoms = torch.nn.functional.normalize(torch.randn(300, 64), dim=1)
x, packed = torch.randn(1, 2000, 64), compiled.pack(atoms, (0, 300))
before = compiled.omp(x, atoms, (0, 300), packed, 6)
child = os.fork()
same = all(map(torch.equal, before, compiled.omp(x, atoms, (0, 300), packed, 6)))
if child == 0:
    os._exit(not same)
assert same and os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_codes_too() -> None:
    subprocess.run([sys.executable, "-c", _FORKED], check=True, timeout=PATIENCE_S)


def test_calls_may_overlap() -> None:
    x, atoms = _problem(64, 300, 400, seed=7)
    expected = _encode(x, atoms, 6)
    with ThreadPoolExecutor(4) as pool:
        for codes in pool.map(lambda _: _encode(x, atoms, 6), range(16)):
            _equal(codes, expected)


@pytest.mark.usefixtures("isa")
def test_grouped_tables_equal_single_calls() -> None:
    sizes = [20, 257, 64, 1, 33][:3]
    starts = tuple(accumulate(sizes, initial=0))
    problems = [_problem(48, n, 37, seed=n) for n in sizes]
    table = torch.cat([atoms for _, atoms in problems])
    vectors = torch.stack([x for x, _ in problems])
    grouped = Codes(*compiled.omp(vectors, table, starts, compiled.pack(table, starts), 5, 0.1))
    dense = compiled.reconstruct(
        grouped.indices, grouped.coefficients, grouped.counts, table, starts
    )
    for t, (x, atoms) in enumerate(problems):
        codes = _rows(grouped, slice(37 * t, 37 * t + 37))
        _equal(codes, _encode(x, atoms, 5, 0.1))
        torch.testing.assert_close(dense[t], naive.reconstruct(codes, atoms))


@pytest.mark.usefixtures("isa")
def test_special_vectors() -> None:
    x, atoms = _problem(64, 100, 6, seed=8)
    x[0] = 0
    x[1] = atoms[41]
    x[2] = -3e30 * atoms[7]
    x[3] = 1e-30 * atoms[99]
    x[4] = 1e-42 * atoms[5]  # subnormal
    codes = _encode(x, atoms, 4)
    assert codes.counts[:4].tolist() == [0, 1, 1, 1]
    assert codes.indices[1:4, 0].tolist() == [41, 7, 99]
    torch.testing.assert_close(codes.coefficients[1:4, 0], torch.tensor([1, -3e30, 1e-30]))
    assert (codes.indices[:4, 1:] == 0).all()
    assert (codes.coefficients[:4, 1:] == 0).all()
    assert codes.indices[4, 0] == 5


@pytest.mark.usefixtures("isa")
def test_equal_scores_resolve_to_the_lowest_index() -> None:
    _, atoms = _problem(32, 60, 1, seed=9)
    atoms = torch.cat([atoms, -atoms, atoms])
    codes = _encode(3 * atoms[[17, 59, 0]], atoms, 5)
    assert codes.indices[:, 0].tolist() == [17, 59, 0]
    assert codes.counts.tolist() == [1, 1, 1]


@pytest.mark.parametrize("m", [3, 64, 96])
@pytest.mark.usefixtures("isa")
def test_as_many_atoms_as_values(m: int) -> None:
    x, atoms = _problem(m, 4 * m, 20, seed=m)
    codes = _encode(x, atoms, m)
    rebuilt = naive.reconstruct(codes, atoms)
    assert ((x - rebuilt).norm(dim=1) <= 1e-4 * x.norm(dim=1)).all()


@pytest.mark.usefixtures("isa")
def test_the_longest_codes() -> None:
    x, atoms = _problem(300, 320, 18, seed=10)
    _agrees(x, atoms, _encode(x, atoms, 255))


@pytest.mark.usefixtures("isa")
def test_reads_nothing_beyond_its_input() -> None:
    x, atoms = _problem(37, 61, 23, seed=11)
    expected = _encode(x, atoms, 6)
    _equal(_encode(_in_nan(x), _in_nan(atoms), 6), expected)
    dense = _reconstruct(expected, atoms)
    assert torch.equal(_reconstruct(expected, _in_nan(atoms)), dense)


@pytest.mark.parametrize("shape", SHAPES, ids=ids)
@pytest.mark.usefixtures("isa")
def test_reconstructs_as_the_twin(shape: tuple[int, int, int, int]) -> None:
    m, n, s, rows = shape
    x, atoms = _problem(m, n, rows, seed=12)
    codes = _encode(x, atoms, s, 0.2)
    torch.testing.assert_close(
        _reconstruct(codes, atoms), naive.reconstruct(codes, atoms), atol=2e-6, rtol=1e-5
    )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int) -> None:
    x, atoms = _problem(64, 100, rows, seed=13)
    codes = _encode(x, atoms, 4)
    assert codes.indices.shape == codes.coefficients.shape == (rows, 4)
    assert _reconstruct(codes, atoms).shape == (rows, 64)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_refuses_non_finite_vectors(value: float) -> None:
    x, atoms = _problem(64, 100, 50, seed=14)
    x[33, 5] = value
    with pytest.raises(NonFiniteCache):
        _encode(x, atoms, 4)


@pytest.mark.usefixtures("isa")
def test_refuses_coefficients_that_overflow() -> None:
    atoms = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    with pytest.raises(NonFiniteCache):
        _encode(torch.full((1, 2), 3.4e38), atoms, 2)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("wrong", [-1, 100, -(1 << 31), (1 << 31) - 1])
def test_refuses_indices_outside_the_dictionary(wrong: int) -> None:
    x, atoms = _problem(64, 100, 9, seed=15)
    codes = _encode(x, atoms, 4)
    codes.indices[8, 3] = wrong
    with pytest.raises(InvalidInput, match="index outside"):
        _reconstruct(codes, atoms)


@pytest.mark.parametrize("wrong", [-1, 5])
def test_refuses_counts_out_of_range(wrong: int) -> None:
    x, atoms = _problem(64, 100, 9, seed=15)
    codes = _encode(x, atoms, 4)
    codes.counts[0] = wrong
    with pytest.raises(InvalidInput, match="count"):
        _reconstruct(codes, atoms)


def test_refuses_what_does_not_fit() -> None:
    x, atoms = _problem(16, 40, 10, seed=16)
    starts, vectors = (0, 40), x[None]
    packed = compiled.pack(atoms, starts)
    for bad in (
        (vectors.double(), atoms, starts, packed, 4),
        (x, atoms, starts, packed, 4),
        (vectors.mT, atoms, starts, packed, 4),
        (vectors, atoms.T, starts, packed, 4),
        (vectors, atoms[:, :8], starts, packed, 4),
        (vectors, atoms, (0, 39), packed, 4),
        (vectors, atoms, (1, 40), packed, 4),
        (vectors, atoms, (0, 0, 40), packed, 4),
        (vectors, atoms, (), packed, 4),
        (vectors, atoms, starts, packed[1:], 4),
    ):
        with pytest.raises(ShapeMismatch):
            compiled.omp(*bad)
    for sparsity, tolerance in ((0, None), (17, None), (4, 1.0), (4, -0.1), (4, float("nan"))):
        with pytest.raises(InvalidInput):
            compiled.omp(vectors, atoms, starts, packed, sparsity, tolerance)
    with pytest.raises(InvalidInput):
        compiled.pack(torch.full((3, 4), float("nan")), (0, 3))
    with pytest.raises(ShapeMismatch, match="table"):
        compiled.pack(torch.ones(1, library.MAX_DIM + 1), (0, 1))
    codes = _encode(x, atoms, 4)
    with pytest.raises(ShapeMismatch):
        compiled.reconstruct(codes.indices, codes.coefficients[:, :2], codes.counts, atoms, starts)
    with pytest.raises(ShapeMismatch):
        compiled.reconstruct(codes.indices, codes.coefficients, codes.counts, atoms, (0, 9, 20, 40))


def test_the_variable_forces_an_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.ISA_VARIABLE, "generic")
    assert library.isa() == "generic"
    monkeypatch.setenv(library.ISA_VARIABLE, "altivec")
    with pytest.raises(ConfigurationError):
        library.isa()
    monkeypatch.delenv(library.ISA_VARIABLE)
    assert library.isa() == ISAS[0]


def _problem(m: int, n: int, rows: int, seed: int, outliers: bool = False) -> tuple[Tensor, Tensor]:
    """Sums of twelve Laplace-weighted atoms plus noise; with outliers, a few loud channels."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(n, m, generator=generator)
    if outliers:
        atoms[:, ::17] *= 6
    atoms /= atoms.norm(dim=1, keepdim=True)
    picked = torch.randint(n, (rows, 12), generator=generator)
    weights = torch.randn(rows, 12, generator=generator).sign()
    weights *= torch.empty(rows, 12).exponential_(generator=generator)
    x = (weights[..., None] * atoms[picked]).sum(1)
    x += 0.1 * torch.randn(rows, m, generator=generator)
    if outliers:
        x[:, m // 2] *= 20
    return x, atoms


def _encode(x: Tensor, atoms: Tensor, sparsity: int, tolerance: float | None = None) -> Codes:
    starts = (0, len(atoms))
    packed = compiled.pack(atoms, starts)
    return Codes(*compiled.omp(x[None], atoms, starts, packed, sparsity, tolerance))


def _reconstruct(codes: Codes, atoms: Tensor) -> Tensor:
    starts = (0, len(atoms))
    return compiled.reconstruct(codes.indices, codes.coefficients, codes.counts, atoms, starts)[0]


def _rows(codes: Codes, which: slice | Tensor) -> Codes:
    return Codes(codes.indices[which], codes.coefficients[which], codes.counts[which])


def _equal(one: Codes, other: Codes) -> None:
    assert torch.equal(one.counts, other.counts)
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.coefficients, other.coefficients)


def _in_nan(tensor: Tensor) -> Tensor:
    """The same values with NaN on both sides, at an odd address."""
    wide = torch.full((tensor.numel() + 1001,), float("nan"))
    inside = wide[501 : 501 + tensor.numel()].view(tensor.shape)
    return inside.copy_(tensor)


def _agrees(x: Tensor, atoms: Tensor, ours: Codes, tolerance: float | None = None) -> None:
    """Same picks as the float64 twin up to ties, and no worse an error."""
    x, atoms = x.double(), atoms.double()
    theirs = naive.omp(x, atoms, ours.indices.shape[1], tolerance)
    past = torch.arange(ours.indices.shape[1]) >= ours.counts[:, None]
    assert (ours.indices[past] == 0).all()
    assert (ours.coefficients[past] == 0).all()
    norms = x.norm(dim=1)
    rebuilt = naive.reconstruct(Codes(ours.indices, ours.coefficients.double(), ours.counts), atoms)
    error, best = (x - rebuilt).norm(dim=1), (x - naive.reconstruct(theirs, atoms)).norm(dim=1)
    for row in range(len(x)):
        k = min(int(ours.counts[row]), int(theirs.counts[row]))
        differ = (ours.indices[row, :k] != theirs.indices[row, :k]).nonzero()
        if len(differ):
            first = int(differ[0])
            assert _tied(x[row], atoms, ours.indices[row], theirs.indices[row], first), row
        elif ours.counts[row] == theirs.counts[row]:
            assert error[row] <= best[row] * (1 + ERROR_RATIO) + ERROR_RATIO * norms[row], row
        else:  # float32 stopped earlier or later: on rounding, on the guard or on the tolerance
            assert error[row] <= max(tolerance or 0, 2e-3) * 1.01 * norms[row], row


def _tied(x: Tensor, atoms: Tensor, ours: Tensor, theirs: Tensor, first: int) -> bool:
    """Whether the picks that differ at `first` score alike on the exact residual."""
    support = atoms[theirs[:first].long()].T
    residual = x - support @ torch.linalg.lstsq(support, x).solution if first else x
    scores = (atoms @ residual).abs()
    return bool((scores[ours[first]] - scores[theirs[first]]).abs() <= TIE * x.norm())
