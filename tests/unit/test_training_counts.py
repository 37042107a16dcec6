"""Tables and points are those of the levels that were counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lexico_codec.kernels.entropy.levels import choose_levels
from lexico_codec.kernels.entropy.tables import Tables
from lexico_codec.sets.transform import classes_of
from lexico_lab.training.counts import Counts


def test_counted_tables_are_the_shares_of_the_levels() -> None:
    generator = torch.Generator().manual_seed(0)
    deviations = torch.tensor([0.1, 1.0, 4.0, 40.0])
    values = deviations[:, None] * torch.randn(4, 200_000, generator=generator)
    counts = Counts()
    classes = classes_of(deviations, 1.0, counts.classes)
    counts.add(values, classes, torch.zeros(200_000, dtype=torch.int8), counts.tables())
    made = counts.tables()
    assert bool((made.frequencies.sum(1) == 4096).all())
    assert bool((made.frequencies[:, -1] > 0).all())
    of_one = made.frequencies[int(classes[1])].double() / 4096
    assert float(of_one[15]) == pytest.approx(
        float((values[1].abs() < 0.6).double().mean()), abs=0.06
    )
    assert torch.equal(of_one[:15], of_one[16:31].flip(0)), "signs are alike"
    points = made.points[int(classes[1])]
    assert float(points[0]) == 0.0
    assert 0.9 < float(points[1]) < 1.1
    far = made.points[int(classes[0])]
    assert torch.equal(far[2:], torch.arange(2.0, 16.0)), "levels that were not met"
    assert int(made.shifts[int(classes[3])]) > 0


def counted_twice(deviation: float) -> tuple[Tensor, Tables, Tables]:
    """Values as components are distributed, and tables as `_count` makes them: without shifts of
    points, and with.
    """
    generator = torch.Generator().manual_seed(1)
    values = torch.empty(1, 200_000).exponential_(generator=generator) * deviation / 2**0.5
    values *= torch.where(torch.rand(values.shape, generator=generator) < 0.5, -1.0, 1.0)
    trial, counts = Counts(), Counts()
    classes = classes_of(torch.tensor([deviation]), 1.0, counts.classes)
    for page in values.split(10_000, dim=1):
        none = torch.zeros(page.shape[1], dtype=torch.int8)
        trial.add(page, classes, none, trial.tables(shifted=False))
    none = torch.zeros(values.shape[1], dtype=torch.int8)
    counts.add(values, classes, none, trial.tables())
    return values[0].double(), counts.tables(shifted=False), counts.tables()


def read_back(values: Tensor, deviation: float, tables: Tables) -> Tensor:
    classes = classes_of(torch.tensor([deviation]), 1.0, tables.classes)
    none = torch.zeros(len(values), dtype=torch.int8)
    levels = choose_levels(values.float()[None], classes, none, tables)[0].long()
    return tables.points[int(classes[0])].double()[levels.abs()] * levels.sign()


def agreeing_cost(values: Tensor, read: Tensor) -> float:
    square = values.square().mean()
    lost = 1 - (read * values).mean() / square
    return float((read - values).square().mean() + 1.25 * square * lost**2)


@pytest.mark.parametrize("octave", [-7, -6, -5, -4, -3, -2, -1, 0, 1])
def test_points_cost_less_than_means_where_errors_agree(octave: int) -> None:
    """In every class, those among them where nearly all values are 0."""
    deviation = 2 ** (octave / 3)
    values, means, shifted = counted_twice(deviation)
    at = int(classes_of(torch.tensor([deviation]), 1.0, means.classes)[0])
    shift = shifted.points[at] - means.points[at]
    assert 0 <= float(shift[1]) < 0.2001
    assert torch.allclose(shift[1:], shift[1], atol=1e-5), "all but 0 alike"
    assert float(shifted.points[at, 1]) < 1.4
    now = agreeing_cost(values, read_back(values, deviation, shifted))
    before = agreeing_cost(values, read_back(values, deviation, means))
    assert now <= before * 1.005
    assert now < float(values.square().mean()) * (2.25 if octave < -5 else 1.5), "0 for all: 2.25"
    if octave in (-4, -3, -2):
        assert now < before * 0.97


@pytest.mark.parametrize("deviation", [0.5, 0.8, 1.6])
def test_the_shift_is_the_best_of_those_allowed(deviation: float) -> None:
    values = deviation * torch.randn(1, 100_000, generator=torch.Generator().manual_seed(1))
    none = torch.zeros(100_000, dtype=torch.int8)
    counts = Counts()
    classes = classes_of(torch.tensor([deviation]), 1.0, counts.classes)
    tables = counts.tables()
    counts.add(values, classes, none, tables)
    levels = choose_levels(values, classes, none, tables)[0].abs().long()
    at, means = int(classes[0]), counts.tables(shifted=False).points

    def cost(shift: float) -> float:
        points = means[at].double() + shift
        points[0] = 0
        return agreeing_cost(values[0].abs().double(), points[levels])

    best = min((cost(step / 1000), step / 1000) for step in range(201))[1]
    shift = float((counts.tables().points - means)[at, 1])
    assert shift == pytest.approx(best, abs=2e-3)


def test_offsets_move_classes_and_uncoded_values_are_not_counted() -> None:
    values = torch.full((2, 3), 0.9)
    classes = torch.tensor([-2, 5], dtype=torch.int16)
    counts = Counts()
    before = counts._symbols.clone()
    counts.add(values, classes, torch.tensor([-8, 0, 7], dtype=torch.int8), counts.tables())
    added = (counts._symbols - before).sum(1)
    assert added.nonzero().flatten().tolist() == [5, 12]
    assert float(added.sum()) == 3.0 or float(added[5]) == 2.0
