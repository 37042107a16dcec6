"""The compiled CPU kernel: input and codes that are refused, and the choice of instructions."""

from __future__ import annotations

import pytest
import torch

from lexico_codec.kernels import library
from lexico_codec.kernels.pursuit import compiled
from lexico_proto.errors import (
    ConfigurationError,
    InvalidInput,
    NonFiniteCache,
    ShapeMismatch,
)
from tests.support.pursuit_problems import ISAS, encode, problem, reconstruct
from tests.support.pursuit_problems import isa as isa

if not library.available():
    pytest.skip("the library is not compiled here", allow_module_level=True)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_refuses_non_finite_vectors(value: float) -> None:
    x, atoms = problem(64, 100, 50, seed=14)
    x[33, 5] = value
    with pytest.raises(NonFiniteCache):
        encode(x, atoms, 4)


@pytest.mark.usefixtures("isa")
def test_refuses_coefficients_that_overflow() -> None:
    atoms = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    with pytest.raises(NonFiniteCache):
        encode(torch.full((1, 2), 3.4e38), atoms, 2)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("wrong", [-1, 100, -(1 << 31), (1 << 31) - 1])
def test_refuses_indices_outside_the_dictionary(wrong: int) -> None:
    x, atoms = problem(64, 100, 9, seed=15)
    codes = encode(x, atoms, 4)
    codes.indices[8, 3] = wrong
    with pytest.raises(InvalidInput, match="index outside"):
        reconstruct(codes, atoms)


@pytest.mark.parametrize("wrong", [-1, 5])
def test_refuses_counts_out_of_range(wrong: int) -> None:
    x, atoms = problem(64, 100, 9, seed=15)
    codes = encode(x, atoms, 4)
    codes.counts[0] = wrong
    with pytest.raises(InvalidInput, match="count"):
        reconstruct(codes, atoms)


def test_refuses_what_does_not_fit() -> None:
    x, atoms = problem(16, 40, 10, seed=16)
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
    codes = encode(x, atoms, 4)
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
