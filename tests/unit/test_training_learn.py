"""Learning of one dictionary: what is recovered, measured and weighed."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from lexico_codec.kernels.pursuit.coding import encode, reconstruct
from lexico_lab.training import learn as learning
from lexico_lab.training.learn import LearnSettings, error_curve, held_out_errors, learn
from lexico_proto.errors import InvalidInput, NonFiniteCache, ShapeMismatch


def planted(atoms: Tensor, vectors: int, sparsity: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    picks = torch.rand(vectors, len(atoms), generator=generator).argsort(1)[:, :sparsity]
    coefficients = torch.randn(vectors, sparsity, generator=generator)
    return (atoms[picks] * coefficients[:, :, None]).sum(1)


def unit_rows(rows: int, m: int, seed: int) -> Tensor:
    drawn = torch.randn(rows, m, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


class TestLearn:
    truth: ClassVar[Tensor] = unit_rows(48, 24, 0)
    train_set: ClassVar[Tensor] = planted(truth, 6000, 3, 1)
    held_out: ClassVar[Tensor] = planted(truth, 500, 3, 2)
    settings: ClassVar[LearnSettings] = LearnSettings(64, 3, 60_000, 2000, seed=5)

    def test_recovers_planted_atoms(self) -> None:
        made = learn(self.train_set, self.held_out, self.settings)
        best_possible, _ = held_out_errors(self.truth, self.held_out, 3)
        untrained, _ = held_out_errors(
            torch.nn.functional.normalize(self.train_set[:64], dim=1), self.held_out, 3
        )
        assert made.relative_error < best_possible + 0.25 * (untrained - best_possible)
        assert made.atoms.shape == (64, 24)
        torch.testing.assert_close(
            made.atoms.float().norm(dim=1), torch.ones(64), atol=1e-3, rtol=0
        )

    def test_reported_errors_are_those_of_the_shipped_atoms(self) -> None:
        made = learn(self.train_set, self.held_out, self.settings)
        again = held_out_errors(made.atoms, self.held_out, 3)
        assert (made.relative_error, made.energy_error) == again

    def test_same_seed_same_atoms(self) -> None:
        first = learn(self.train_set, self.held_out, self.settings)
        again = learn(self.train_set, self.held_out, self.settings)
        other = learn(self.train_set, self.held_out, replace(self.settings, seed=6))
        assert torch.equal(first.atoms, again.atoms)
        assert not torch.equal(first.atoms, other.atoms)

    def test_dead_atoms_are_revived(self) -> None:
        # All atoms start in one corner of the data; the rest is only met by reviving.
        corner = 5 * unit_rows(1, 24, 7) + 1e-3 * unit_rows(400, 24, 8)
        few = LearnSettings(64, 3, 120_000, 2000)
        vectors = torch.cat([corner.repeat(200, 1), self.train_set[:600]])
        made = learn(vectors, self.held_out, few)
        assert made.revived > 0
        alone = learn(corner, self.held_out, replace(few, vectors=2000))
        assert made.relative_error < alone.relative_error

    def test_zero_vectors_do_no_harm(self) -> None:
        vectors = torch.cat([self.train_set, torch.zeros(2000, 24)])
        made = learn(vectors, torch.cat([self.held_out, torch.zeros(9, 24)]), self.settings)
        assert made.relative_error < 0.3

    def test_bad_input_is_named(self) -> None:
        few = replace(self.settings, vectors=1000)
        with pytest.raises(InvalidInput, match="train"):
            learn(self.train_set[:63], self.held_out, few)
        with pytest.raises(InvalidInput, match="train"):
            learn(torch.zeros(100, 24), self.held_out, few)
        with pytest.raises(ShapeMismatch, match="held_out"):
            learn(self.train_set, self.held_out[:, :5], few)
        with pytest.raises(NonFiniteCache, match="train"):
            learn(self.train_set / 0, self.held_out, few)
        with pytest.raises(InvalidInput, match="sparsity"):
            learn(self.train_set, self.held_out, replace(few, sparsity=25))
        with pytest.raises(InvalidInput, match="sparsity"):
            LearnSettings(atoms=4, sparsity=5)
        with pytest.raises(InvalidInput, match="vectors"):
            LearnSettings(vectors=0)


def test_error_curve_is_that_of_pursuit_with_every_number_of_atoms() -> None:
    atoms, vectors = unit_rows(40, 24, 0), planted(unit_rows(99, 24, 3), 700, 20, 4)
    vectors[3] = 0
    vectors[4] = 2 * atoms[7]
    curve = error_curve(atoms, vectors, 9)
    assert curve.shape == (10,)
    assert float(curve[0]) == pytest.approx(float(vectors.square().mean()))
    for s in (1, 5, 9):
        left = vectors - reconstruct(encode(vectors, atoms, s), atoms)
        assert float(curve[s]) == pytest.approx(float(left.square().mean()), rel=1e-4)
    whole = error_curve(atoms, vectors)
    assert whole.shape == (25,)
    assert bool((whole.diff() <= 0).all())
    assert float(whole[24]) < 1e-6


def test_weights_decide_where_the_error_goes() -> None:
    wanted, other = (
        planted(unit_rows(48, 24, 0), 3000, 3, 1),
        planted(unit_rows(48, 24, 9), 3000, 3, 2),
    )
    weights = torch.cat([torch.full((3000,), 1.95), torch.full((3000,), 0.05)])
    few = LearnSettings(48, 3, 40_000, 2000)
    both = torch.cat([wanted, other])
    weighted = learn(both, wanted[:500], few, weights)
    assert weighted.relative_error < learn(both, wanted[:500], few).relative_error
    with pytest.raises(ShapeMismatch, match="weights"):
        learn(both, wanted, few, weights[:5])


@pytest.mark.parametrize("weighted", [False, True])
def test_products_accumulate_as_scattered_sums_do(weighted: bool) -> None:
    """What GPUs add up is what the CPU adds up, to rounding."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(63, 24, generator=generator), dim=1)
    x = torch.randn(501, 24, generator=generator)
    x[7] = 0
    codes = encode(x, atoms, 5)
    weight = torch.rand(501, generator=generator) if weighted else None
    found = []
    for add in (learning._accumulate, learning._accumulate_dense):
        sums = (torch.ones(63, 63), torch.ones(63, 24), torch.ones(63))
        add(*sums, x, codes, weight)
        found.append(sums)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
