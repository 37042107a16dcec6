"""Atoms are learned from codes as frames give them back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lexico_codec.codecs.packed.coefficients import quantise
from lexico_codec.codecs.packed.packed_codes import read, write
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import encode
from lexico_lab.training.learn import LearnSettings, learn
from lexico_lab.training.rounding import as_lexico, as_packed, in_steps
from tests.support.dictionaries import unit_rows


def drawn(rows: int, m: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, m, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tables", [1, 3])
@pytest.mark.parametrize("tolerance", [None, 0.6])
def test_packed_codes_are_those_that_a_frame_gives_back(
    tables: int, tolerance: float | None
) -> None:
    sizes = [40, 33, 48][:tables]
    atoms = Atoms.of(unit_rows(sum(sizes), 16, 1), [0, *torch.tensor(sizes).cumsum(0).tolist()])
    vectors = drawn(tables * 50, 16)
    # Of table 0 atoms have nearly all: it takes more bits than the others.
    vectors[:50] = atoms.stack[torch.arange(50) % 40] * drawn(50, 1, 2) + 1e-4 * vectors[:50]
    codes = encode(vectors.view(tables, 50, 16), atoms, 5, tolerance)
    chosen = quantise(codes, atoms, vectors.square().sum(1), 3)
    stored = read(memoryview(write(chosen, atoms.sizes)), atoms.sizes, [5] * tables, 50)
    made = chosen.codes()
    width = stored.indices.shape[1]
    assert chosen.bits[0] > 3
    assert torch.equal(made.counts, stored.counts)
    assert torch.equal(made.indices[:, :width], stored.indices)
    assert torch.equal(made.coefficients[:, :width], stored.coefficients)
    assert not bool(made.coefficients[:, width:].any())


def test_room_for_more_atoms_changes_nothing() -> None:
    """Entries after a vector's atoms neither widen its coefficients nor move its scale."""
    stack = torch.cat([unit_rows(40, 16, seed) for seed in (1, 2, 3)])
    atoms, vectors = Atoms.of(stack, (0, 40, 80, 120)), drawn(3 * 60, 16)
    codes = encode(vectors.view(3, 60, 16), atoms, 9, tolerance=0.6)
    few = [
        encode(vectors[60 * t : 60 * t + 60], atoms.narrow(t, 1), s) for t, s in ((1, 2), (2, 5))
    ]
    for table, own in enumerate(few, 1):
        rows, width = slice(60 * table, 60 * table + 60), own.indices.shape[1]
        codes.indices[rows], codes.coefficients[rows] = 0, 0
        codes.indices[rows, :width], codes.coefficients[rows, :width] = (
            own.indices,
            own.coefficients,
        )
        codes.counts[rows] = own.counts
    squares = vectors.square().sum(1)
    whole = quantise(codes, atoms, squares, 3)
    for table in range(3):
        rows = slice(60 * table, 60 * table + 60)
        width = int(codes.counts[rows].max())
        columns = (codes.indices[rows, :width], codes.coefficients[rows, :width])
        of_table = quantise(
            Codes(*columns, codes.counts[rows]), atoms.narrow(table, 1), squares[rows], 3
        )
        assert of_table.bits == whole.bits[table]
        assert torch.equal(of_table.scales, whole.scales[rows])
        used = torch.arange(width) < of_table.counts[:, None]
        for name in ("indices", "levels"):
            made = getattr(whole, name)[rows, :width]
            assert torch.equal(getattr(of_table, name)[used], made[used])


def test_no_codes_at_all() -> None:
    atoms = Atoms.of(unit_rows(8, 4, 1))
    none = quantise(encode(torch.zeros(0, 4), atoms, 2), atoms, torch.zeros(0), 4).codes()
    assert none.indices.shape == (0, 2)


def test_each_rounding_is_its_codecs() -> None:
    atoms, vectors = unit_rows(40, 16, 1), drawn(60, 16)
    codes = encode(vectors, atoms, 4)
    lexico = as_lexico(codes, vectors, atoms)
    assert torch.equal(lexico.coefficients, codes.quantised().plain().coefficients)
    packed = as_packed(codes, vectors, atoms)
    squares = vectors.square().sum(1)
    four_bits = quantise(codes, Atoms.of(atoms), squares, 4).codes()
    assert torch.equal(packed.coefficients, four_bits.coefficients)
    steps = in_steps(0.5)(codes, vectors, atoms)
    assert torch.equal(steps.coefficients % 0.5, torch.zeros_like(steps.coefficients))
    assert bool(((steps.coefficients - codes.coefficients).abs() <= 0.25).all())
    for rounded in (lexico, packed, steps):
        assert not torch.equal(rounded.coefficients, codes.coefficients)


def test_learning_sees_rounded_codes_alone() -> None:
    """Codes that rounding takes away move nothing: the atoms stay the vectors that they were."""
    vectors = torch.nn.functional.normalize(drawn(500, 12), dim=1)
    how = LearnSettings(atoms=20, sparsity=2, vectors=100, batch=100)
    met: list[int] = []

    def nothing(codes: Codes, rows: Tensor, atoms: Tensor) -> Codes:
        met.append(len(rows))
        return replace(codes, coefficients=torch.zeros_like(codes.coefficients))

    still = learn(vectors, vectors[:50], how, rounding=nothing).atoms
    moved = learn(vectors, vectors[:50], how).atoms
    assert met == [100]
    nearest = (still.float() @ vectors.T).amax(1)
    assert bool((nearest > 1 - 1e-3).all())
    assert bool(((moved.float() @ vectors.T).amax(1) < 1 - 1e-3).any())
