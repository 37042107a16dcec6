"""The entropy coder: values, tables, shapes and kernels that are refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lexico_codec.kernels import library
from lexico_codec.kernels.dispatch import KERNEL_VARIABLE
from lexico_codec.kernels.entropy.coder import decode, encode
from lexico_codec.kernels.entropy.tables import (
    MAX_CLASSES,
    MAX_SHIFT,
    Tables,
)
from lexico_proto.errors import ConfigurationError, InvalidInput, ShapeMismatch
from tests.support.entropy_problems import kernel as kernel
from tests.support.entropy_problems import typical

# Refusals


@pytest.mark.parametrize("value", [1 << 30, -(1 << 30), (1 << 31) - 1, -(1 << 31)])
def test_large_values_are_refused(kernel: str, value: int) -> None:
    problem = typical(4, 40, 0, shifted=False)
    problem.levels[1, 35] = value
    with pytest.raises(InvalidInput):
        problem.encode(kernel)


@pytest.mark.parametrize("shifted", [False, True], ids=["one-class", "offsets"])
def test_values_that_would_be_lost_are_refused(kernel: str, shifted: bool) -> None:
    problem = typical(4, 40, 0, shifted=shifted)
    component, token = (problem.effective() < 0).nonzero()[-1]
    problem.levels[component, token] = 1
    with pytest.raises(InvalidInput):
        problem.encode(kernel)


def broken(change: Callable[[Tensor], None], which: int) -> list[Tensor]:
    tables = typical(1, 1, 0, shifted=False).tables
    parts = [tables.frequencies.clone(), tables.shifts.clone(), tables.points.clone()]
    change(parts[which])
    return parts


def test_tables_are_checked() -> None:
    def more(f: Tensor) -> None:
        f[3, 4] += 1

    def none(f: Tensor) -> None:  # the escape must have some
        f[0, 15] += f[0, 31]
        f[0, 31] = 0

    def far(shifts: Tensor) -> None:
        shifts[0] = MAX_SHIFT + 1

    def nan(points: Tensor) -> None:
        points[0, 0] = math.nan

    for change, which in ((more, 0), (none, 0), (far, 1), (nan, 2)):
        with pytest.raises(InvalidInput):
            Tables(*broken(change, which))
    frequencies, shifts, points = broken(lambda _: None, 0)
    for parts in (
        (frequencies.long(), shifts, points),
        (frequencies[:, :31], shifts, points),
        (frequencies, shifts[1:], points),
        (frequencies, shifts.int(), points),
        (frequencies, shifts, points.double()),
        (frequencies, shifts, points[:, :15]),
        (frequencies.sum(), shifts, points),
    ):
        with pytest.raises(ShapeMismatch):
            Tables(*parts)
    many = MAX_CLASSES + 1
    with pytest.raises(InvalidInput):
        Tables(frequencies[:1].repeat(many, 1), shifts[:1].repeat(many), points[:1].repeat(many, 1))
    with pytest.raises(InvalidInput):
        Tables(frequencies[:0], shifts[:0], points[:0])


def test_shapes_are_checked() -> None:
    problem = typical(4, 40, 0, shifted=True)
    levels, classes, offsets, tables = (
        problem.levels,
        problem.classes,
        problem.offsets,
        problem.tables,
    )
    assert offsets is not None
    for wrong in (
        (levels.long(), classes, offsets),
        (levels[:3], classes, offsets),
        (levels, classes.int(), offsets),
        (levels, classes, offsets[1:]),
        (levels, classes, offsets.int()),
    ):
        with pytest.raises(ShapeMismatch):
            encode(*wrong, tables)
    body = problem.encode()
    with pytest.raises(ShapeMismatch):
        decode(body, classes.int(), offsets, tables, 40)
    with pytest.raises(ShapeMismatch):
        decode(body, classes, offsets[1:], tables, 40)
    with pytest.raises(InvalidInput):
        decode(body, classes, None, tables, -1)


def test_the_variable_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = typical(4, 40, 0, shifted=False)
    body = problem.encode()
    for name in ("naive", "triton", ""):  # triton: for what is on the device
        monkeypatch.setenv(KERNEL_VARIABLE, name)
        assert torch.equal(problem.decode(body, levels=True), problem.levels)
    monkeypatch.setenv(KERNEL_VARIABLE, "fortran")
    with pytest.raises(ConfigurationError):
        problem.encode()
    monkeypatch.delenv(KERNEL_VARIABLE)
    monkeypatch.setattr(library, "available", lambda: False)
    assert problem.encode() == body
    with pytest.raises(ConfigurationError):
        problem.encode("compiled")
