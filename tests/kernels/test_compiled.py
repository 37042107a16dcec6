"""The compiled CPU kernel against the twin and scikit-learn, on every instruction set here."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp_gram

from lexico_codec.kernels import library
from lexico_codec.kernels.pursuit import naive
from tests.support.pursuit_problems import ISAS, agrees, encode, equal, problem, reconstruct
from tests.support.pursuit_problems import isa as isa

if not library.available():
    pytest.skip("the library is not compiled here", allow_module_level=True)


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


@pytest.mark.parametrize("outliers", [False, True], ids=["even", "outliers"])
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
@pytest.mark.usefixtures("isa")
def test_picks_what_float64_picks(shape: tuple[int, int, int, int], outliers: bool) -> None:
    m, n, s, rows = shape
    x, atoms = problem(m, n, rows, seed=m + n, outliers=outliers)
    agrees(x, atoms, encode(x, atoms, s))


@pytest.mark.usefixtures("isa")
def test_agrees_with_the_float32_twin() -> None:
    x, atoms = problem(64, 500, 300, seed=3)
    ours, theirs = encode(x, atoms, 8), naive.omp(x, atoms, 8)
    same = (ours.indices == theirs.indices).all(1)
    assert same.float().mean() > 0.99
    torch.testing.assert_close(
        ours.coefficients[same], theirs.coefficients[same], atol=2e-5, rtol=2e-4
    )


@pytest.mark.usefixtures("isa")
def test_agrees_with_scikit_learn() -> None:
    x, atoms = problem(80, 130, 30, seed=4)
    wide = atoms.double()
    dense = orthogonal_mp_gram(
        (wide @ wide.T).numpy(), (wide @ x.double().T).numpy(), n_nonzero_coefs=7
    )
    codes = encode(x, atoms, 7)
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
    x, atoms = problem(m, n, rows, seed, outliers)
    if twins:
        atoms[n // 2 :] = atoms[: n - n // 2].clone()
    x = torch.ldexp(x, torch.tensor(exponent))
    with pytest.MonkeyPatch.context() as patch:
        answers = {}
        for name in ISAS:
            patch.setenv(library.ISA_VARIABLE, name)
            answers[name] = encode(x, atoms, s, tolerance)
    agrees(x, atoms, answers["generic"], tolerance)
    for one, other in combinations([name for name in ISAS if name != "generic"], 2):
        equal(answers[one], answers[other])
    if ISAS[0] != "generic":
        agrees(x, atoms, answers[ISAS[0]], tolerance)


@pytest.mark.usefixtures("isa")
def test_special_vectors() -> None:
    x, atoms = problem(64, 100, 6, seed=8)
    x[0] = 0
    x[1] = atoms[41]
    x[2] = -3e30 * atoms[7]
    x[3] = 1e-30 * atoms[99]
    x[4] = 1e-42 * atoms[5]  # subnormal
    codes = encode(x, atoms, 4)
    assert codes.counts[:4].tolist() == [0, 1, 1, 1]
    assert codes.indices[1:4, 0].tolist() == [41, 7, 99]
    torch.testing.assert_close(codes.coefficients[1:4, 0], torch.tensor([1, -3e30, 1e-30]))
    assert (codes.indices[:4, 1:] == 0).all()
    assert (codes.coefficients[:4, 1:] == 0).all()
    assert codes.indices[4, 0] == 5


@pytest.mark.usefixtures("isa")
def test_equal_scores_resolve_to_the_lowest_index() -> None:
    _, atoms = problem(32, 60, 1, seed=9)
    atoms = torch.cat([atoms, -atoms, atoms])
    codes = encode(3 * atoms[[17, 59, 0]], atoms, 5)
    assert codes.indices[:, 0].tolist() == [17, 59, 0]
    assert codes.counts.tolist() == [1, 1, 1]


@pytest.mark.parametrize("m", [3, 64, 96])
@pytest.mark.usefixtures("isa")
def test_as_many_atoms_as_values(m: int) -> None:
    x, atoms = problem(m, 4 * m, 20, seed=m)
    codes = encode(x, atoms, m)
    rebuilt = naive.reconstruct(codes, atoms)
    assert ((x - rebuilt).norm(dim=1) <= 1e-4 * x.norm(dim=1)).all()


@pytest.mark.usefixtures("isa")
def test_the_longest_codes() -> None:
    x, atoms = problem(300, 320, 18, seed=10)
    agrees(x, atoms, encode(x, atoms, 255))


@pytest.mark.parametrize("shape", SHAPES, ids=ids)
@pytest.mark.usefixtures("isa")
def test_reconstructs_as_the_twin(shape: tuple[int, int, int, int]) -> None:
    m, n, s, rows = shape
    x, atoms = problem(m, n, rows, seed=12)
    codes = encode(x, atoms, s, 0.2)
    torch.testing.assert_close(
        reconstruct(codes, atoms), naive.reconstruct(codes, atoms), atol=2e-6, rtol=1e-5
    )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int) -> None:
    x, atoms = problem(64, 100, rows, seed=13)
    codes = encode(x, atoms, 4)
    assert codes.indices.shape == codes.coefficients.shape == (rows, 4)
    assert reconstruct(codes, atoms).shape == (rows, 64)
