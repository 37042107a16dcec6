"""OMP in plain PyTorch against scikit-learn, and on inputs that break careless versions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp
from torch import Tensor

from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import encode, reconstruct
from lexico_proto.errors import InvalidInput, NonFiniteCache, ShapeMismatch

# dtype, atol and rtol of reconstructions of vectors with norm about 1
TOLERANCES = {torch.float32: (2e-5, 2e-5), torch.float64: (1e-11, 1e-11)}


def unit_rows(rows: int, m: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, m, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1).to(dtype)


def oracle(x: Tensor, atoms: Tensor, sparsity: int) -> Tensor:
    """scikit-learn's coefficients as a dense `[B, N]`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where a vector is exactly represented early
        dense = orthogonal_mp(atoms.numpy().T, x.numpy().T, n_nonzero_coefs=sparsity)
    return torch.from_numpy(np.atleast_2d(dense.reshape(len(atoms), -1).T))


def dense(codes: Codes, size: int) -> Tensor:
    out = torch.zeros(len(codes.indices), size, dtype=codes.coefficients.dtype)
    return out.scatter_add_(1, codes.indices.long(), codes.coefficients)


def check_sound(codes: Codes, size: int, sparsity: int) -> None:
    """What every result must keep, whatever the input."""
    b = len(codes.counts)
    assert codes.indices.shape == codes.coefficients.shape == (b, sparsity)
    assert (codes.indices.dtype, codes.counts.dtype) == (torch.int32, torch.int32)
    used = torch.arange(sparsity) < codes.counts[:, None]
    assert bool((codes.indices[~used] == 0).all())
    assert bool((codes.coefficients[~used] == 0).all())
    assert bool(((codes.indices >= 0) & (codes.indices < size)).all())
    for row, count in zip(codes.indices, codes.counts, strict=True):
        assert len(set(row[:count].tolist())) == count, "an atom was picked twice"


@settings(deadline=None)
@given(
    b=st.integers(0, 40),
    m=st.sampled_from([1, 2, 7, 63, 64, 100, 128]),
    size=st.sampled_from([1, 5, 31, 32, 33, 100, 257, 1024]),
    sparsity=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_equals_scikit_learn_in_float64(
    b: int, m: int, size: int, sparsity: int, seed: int
) -> None:
    sparsity = min(sparsity, m, size)
    atoms, x = unit_rows(size, m, seed), unit_rows(b, m, seed + 1)
    codes = encode(x, atoms, sparsity)
    check_sound(codes, size, sparsity)
    if b:
        torch.testing.assert_close(
            dense(codes, size), oracle(x, atoms, sparsity), atol=1e-8, rtol=1e-8
        )


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize(
    ("b", "m", "size", "sparsity"),
    [(63, 64, 1280, 8), (100, 100, 257, 13), (3 * 17, 128, 1024, 32), (5000, 16, 40, 4)],
    ids=["B63-m64-N1280-s8", "B100-m100-N257-s13", "B51-m128-N1024-s32", "B5000-m16-N40-s4"],
)
def test_residual_is_orthogonal_to_the_atoms_picked(
    b: int, m: int, size: int, sparsity: int, dtype: torch.dtype
) -> None:
    atoms, x = unit_rows(size, m, 0, dtype), unit_rows(b, m, 1, dtype)
    codes = encode(x, atoms, sparsity)
    check_sound(codes, size, sparsity)
    residual = x - reconstruct(codes, atoms)
    picked = atoms[codes.indices.long()]  # [b, s, m]
    overlap = (picked @ residual[:, :, None]).abs().max()
    assert float(overlap) <= TOLERANCES[dtype][0]


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_vector_that_is_an_atom_needs_one(dtype: torch.dtype) -> None:
    atoms = unit_rows(300, 64, 3, dtype)
    codes = encode(-2.5 * atoms, atoms, 8)
    assert codes.counts.tolist() == [1] * 300
    assert codes.indices[:, 0].tolist() == list(range(300))
    torch.testing.assert_close(
        codes.coefficients[:, 0], torch.full((300,), -2.5, dtype=dtype), atol=1e-5, rtol=1e-5
    )


def test_zero_vectors_have_no_atoms() -> None:
    x = unit_rows(7, 64, 4, torch.float32)
    x[[0, 3, 6]] = 0
    codes = encode(x, unit_rows(100, 64, 5, torch.float32), 8)
    check_sound(codes, 100, 8)
    assert codes.counts.tolist() == [0, 8, 8, 0, 8, 8, 0]


def test_duplicate_atoms_are_picked_once() -> None:
    single = unit_rows(50, 32, 6)
    twice = torch.cat([single, single, -single])
    x = unit_rows(64, 32, 7)
    codes = encode(x, twice, 8)
    check_sound(codes, 150, 8)
    once = reconstruct(encode(x, single, 8), single)
    torch.testing.assert_close(reconstruct(codes, twice), once, atol=1e-9, rtol=1e-9)


def test_atoms_that_span_less_than_the_space() -> None:
    atoms = torch.zeros(40, 16, dtype=torch.float64)
    atoms[:, :3] = unit_rows(40, 3, 8)
    codes = encode(unit_rows(20, 16, 9), atoms, 8)
    check_sound(codes, 40, 8)
    assert int(codes.counts.max()) <= 3


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-6, 1.0, 1e6, 1e30, 1e37])
def test_codes_do_not_depend_on_the_norm(scale: float) -> None:
    atoms, x = unit_rows(128, 64, 10, torch.float32), unit_rows(33, 64, 11, torch.float32)
    power = 2.0 ** round(np.log2(scale))
    scaled = x * power  # exact but for subnormals
    codes, plain = encode(scaled, atoms, 8), encode(x, atoms, 8)
    check_sound(codes, 128, 8)
    assert bool(codes.coefficients.isfinite().all())
    if scale >= 1e-30:
        assert torch.equal(codes.indices, plain.indices)
        torch.testing.assert_close(codes.coefficients / power, plain.coefficients)


def test_norm_beyond_float32_is_refused() -> None:
    x = torch.full((2, 64), torch.finfo(torch.float32).max)
    with pytest.raises(NonFiniteCache, match="vectors"):
        encode(x, torch.full((1, 64), 0.125), 1)


@settings(deadline=None)
@given(tolerance=st.floats(0.0, 0.99), seed=st.integers(0, 1000))
def test_tolerance_stops_as_soon_as_it_is_met(tolerance: float, seed: int) -> None:
    atoms, x = unit_rows(200, 32, seed), unit_rows(25, 32, seed + 1)
    codes = encode(x, atoms, 16, tolerance)
    check_sound(codes, 200, 16)
    error = (x - reconstruct(codes, atoms)).norm(dim=1)
    assert bool(((error <= tolerance + 1e-9) | (codes.counts == 16)).all())
    for count in set(codes.counts.tolist()) - {0, 1}:
        rows = codes.counts == count
        shorter = encode(x[rows], atoms, count - 1)
        before = (x[rows] - reconstruct(shorter, atoms)).norm(dim=1)
        assert bool((before > tolerance - 1e-9).all()), "an atom more than needed"


def test_tolerance_agrees_with_scikit_learn() -> None:
    atoms, x = unit_rows(100, 32, 20), unit_rows(30, 32, 21)
    codes = encode(x, atoms, 32, 0.3)
    expected = orthogonal_mp(atoms.numpy().T, x.numpy().T, tol=0.09).T
    torch.testing.assert_close(dense(codes, 100), torch.from_numpy(expected), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("b", [0, 1])
def test_few_vectors(b: int) -> None:
    atoms = unit_rows(64, 16, 12, torch.float32)
    codes = encode(unit_rows(b, 16, 13, torch.float32), atoms, 3)
    check_sound(codes, 64, 3)
    assert reconstruct(codes, atoms).shape == (b, 16)


def test_same_input_same_output_over_many_chunks() -> None:
    atoms, x = unit_rows(2048, 64, 14, torch.float32), unit_rows(5001, 64, 15, torch.float32)
    first, again = encode(x, atoms, 6), encode(x, atoms, 6)
    assert torch.equal(first.indices, again.indices)
    assert torch.equal(first.coefficients, again.coefficients)


def test_reconstruct_is_the_plain_sum() -> None:
    atoms, x = unit_rows(500, 64, 16, torch.float32), unit_rows(777, 64, 17, torch.float32)
    codes = encode(x, atoms, 8, 0.4)
    plain = dense(codes, 500) @ atoms
    atol, rtol = TOLERANCES[torch.float32]
    torch.testing.assert_close(reconstruct(codes, atoms), plain, atol=atol, rtol=rtol)


X = unit_rows(4, 16, 18, torch.float32)
ATOMS = unit_rows(32, 16, 19, torch.float32)


@pytest.mark.parametrize(
    ("vectors", "atoms", "sparsity", "tolerance", "error", "named"),
    [
        (X[0], ATOMS, 4, None, ShapeMismatch, "vectors"),
        (X, ATOMS[:, :8], 4, None, ShapeMismatch, "atoms"),
        (X, ATOMS[0], 4, None, ShapeMismatch, "atoms"),
        (X.half(), ATOMS.half(), 4, None, ShapeMismatch, "atoms"),
        (X.int(), ATOMS, 4, None, ShapeMismatch, "vectors"),
        (X, ATOMS.double(), 4, None, ShapeMismatch, "atoms"),
        (X, ATOMS, 0, None, InvalidInput, "sparsity"),
        (X, ATOMS, 17, None, InvalidInput, "sparsity"),
        (X, ATOMS[:3], 4, None, InvalidInput, "sparsity"),
        (X, ATOMS[:0], 1, None, InvalidInput, "atoms"),
        (torch.ones(1, 300), torch.full((300, 300), 300**-0.5), 256, None, InvalidInput, "spars"),
        (X, ATOMS, 4, 1.0, InvalidInput, "tolerance"),
        (X, ATOMS, 4, float("nan"), InvalidInput, "tolerance"),
        (X, ATOMS * 1.01, 4, None, InvalidInput, "atoms"),
        (X, ATOMS * float("nan"), 4, None, InvalidInput, "atoms"),
        (X * float("nan"), ATOMS, 4, None, NonFiniteCache, "vectors"),
        (X / 0, ATOMS, 4, None, NonFiniteCache, "vectors"),
        (X[:, :1], torch.ones(65537, 1), 1, None, InvalidInput, "atoms"),
    ],
)
def test_bad_input_is_named(
    vectors: Tensor,
    atoms: Tensor,
    sparsity: int,
    tolerance: float | None,
    error: type[Exception],
    named: str,
) -> None:
    with pytest.raises(error, match=named):
        encode(vectors, atoms, sparsity, tolerance)


@pytest.mark.parametrize("index", [-1, 32, 2**31 - 1])
def test_reconstruct_refuses_foreign_indices(index: int) -> None:
    codes = Codes(
        torch.full((2, 3), index, dtype=torch.int32), torch.ones(2, 3), torch.tensor([3, 3])
    )
    with pytest.raises(InvalidInput, match=r"index|indices"):
        reconstruct(codes, ATOMS)


def test_fp16_atoms_pass_the_unit_norm_check() -> None:
    for m in (16, 64, 512):
        encode(torch.ones(1, m), unit_rows(4096, m, m).half().float(), 4)
