"""The entropy coder: twin and compiled library give the same bytes and values, near the entropy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lexico_codec.kernels import library
from lexico_codec.kernels.entropy.tables import (
    LEVEL_LIMIT,
    SYMBOLS,
    TOTAL,
    Tables,
)
from tests.support.entropy_problems import ISAS, Problem, any_problem, check, needs_library, typical
from tests.support.entropy_problems import kernel as kernel


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shifted", [False, True], ids=["one-class", "offsets"])
@pytest.mark.parametrize("tokens", [0, 1, 31, 32, 33, 63, 100, 128, 129, 300])
def test_any_number_of_tokens(kernel: str, tokens: int, shifted: bool) -> None:
    check(typical(37, tokens, tokens, shifted=shifted), kernel)


@pytest.mark.parametrize("components", [0, 1, 2, 63, 200])
def test_any_number_of_components(kernel: str, components: int) -> None:
    check(typical(components, 45, components, shifted=True), kernel)


def test_values_are_points_in_units_of_the_step(kernel: str) -> None:
    tables = Tables(
        torch.full((2, SYMBOLS), TOTAL // SYMBOLS).int(),
        torch.tensor([0, 3], dtype=torch.uint8),
        torch.stack([torch.arange(16.0) ** 1.5 + 7, torch.full((16,), 99.0)]),
    )
    levels = torch.tensor([[0, 1, -1, 15, -15, 16, -16, LEVEL_LIMIT]]).int().repeat(3, 1)
    levels[2] = 0
    problem = Problem(levels, torch.tensor([0, 1, -1]).short(), None, tables)
    values = problem.decode(check(problem, kernel), kernel)
    points = [0.0, 8.0, -8.0, 7 + 15**1.5, -7 - 15**1.5, 16.0, -16.0, float(1 << 30)]
    torch.testing.assert_close(values[0], torch.tensor(points))
    assert torch.equal(values[1], levels[1].float())
    assert not values[2].any()


@pytest.mark.parametrize("symbol", [0, 15, 16, 30, 31])
def test_single_symbols(kernel: str, symbol: int) -> None:
    frequencies = torch.ones(1, SYMBOLS).int()
    frequencies[0, symbol] += TOTAL - SYMBOLS
    tables = Tables(frequencies, torch.zeros(1, dtype=torch.uint8), torch.ones(1, 16))
    for value in (symbol - 15, 3, 77777):  # the likely one, an unlikely one, escapes
        levels = torch.full((50, 70), value).int()
        body = check(Problem(levels, torch.zeros(50).short(), None, tables), kernel)
        if value == symbol - 15 and value < 16:
            assert len(body) < 3 * 4 + 70 * 4 + 80


def test_components_that_are_not_coded_cost_nothing(kernel: str) -> None:
    problem = typical(20, 64, 0, shifted=False)
    more = torch.cat([problem.levels, torch.zeros(500, 64).int()])
    classes = torch.cat([problem.classes, torch.full((500,), -32768).short()])
    wide = Problem(more, classes, None, problem.tables)
    assert len(check(wide, kernel)) == len(problem.encode(kernel))


def test_order_of_classes_does_not_matter(kernel: str) -> None:
    problem = typical(60, 100, 1, shifted=True)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    check(
        Problem(problem.levels[order], problem.classes[order], problem.offsets, problem.tables),
        kernel,
    )


@settings(max_examples=150, deadline=None)
@given(
    components=st.integers(0, 40),
    tokens=st.integers(0, 140),
    classes=st.integers(1, 9),
    offsets=st.sampled_from([None, 0, 1, 5, 127]),
    flat=st.booleans(),
    seed=st.integers(0, 1 << 30),
    isa=st.sampled_from(ISAS),
)
def test_any_problem(
    components: int,
    tokens: int,
    classes: int,
    offsets: int | None,
    flat: bool,
    seed: int,
    isa: str,
) -> None:
    problem = any_problem(components, tokens, classes, offsets, flat, seed)
    with pytest.MonkeyPatch.context() as patch:
        if isa != "naive":
            patch.setenv(library.ISA_VARIABLE, isa)
        check(problem, "naive" if isa == "naive" else "compiled")


@needs_library
@pytest.mark.parametrize("shifted", [False, True], ids=["one-class", "offsets"])
def test_thread_counts_give_equal_bytes(shifted: bool) -> None:
    problem = typical(300, 2000, 3, shifted=shifted)
    made = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        body = problem.encode("compiled")
        made.append((body, problem.decode(body, "compiled")))
    assert all(body == made[0][0] for body, _ in made)
    assert all(torch.equal(values, made[0][1]) for _, values in made)


def test_size_is_near_the_entropy() -> None:
    problem = typical(400, 320, 4, shifted=True)
    e = problem.effective()
    live, e = e >= 0, e.clamp(0).long()
    shifts = problem.tables.shifts[e].int()
    high = problem.levels >> shifts
    escaped = high.abs() > 15
    symbols = torch.where(escaped, 31, high + 15).long()
    bits = -(problem.tables.frequencies[e, symbols] / TOTAL).log2() + shifts + 16 * escaped
    ideal = float((bits * live).sum()) / 8
    size = len(problem.encode())
    blocks = 320 // 32
    assert ideal <= size - 4 * 32 * blocks + 2 * 32 * blocks  # 16 bits of a state carry data
    assert size <= ideal * 1.01 + (4 + 2 * 32 + 12) * blocks
