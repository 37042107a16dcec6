"""The entropy decoder in Triton's interpreter gives what the twin gives."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from lexico_proto.errors import DamagedFrame
from tests.support.entropy_problems import Problem, any_problem, mutations, typical

# Triton's interpreter


def on_triton(problems: list[Problem], dtype: torch.dtype = torch.float32) -> Tensor:
    """All of them, of one set of tables, in one launch."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs TRITON_INTERPRET=1 before triton is imported")
    from lexico_codec.kernels.entropy import triton_decode as triton_entropy

    offsets = [problem.offsets for problem in problems if problem.offsets is not None]
    return triton_entropy.decode(
        [problem.encode() for problem in problems],
        torch.stack([problem.classes for problem in problems]),
        torch.cat(offsets) if offsets else None,
        problems[0].tables,
        [problem.tokens for problem in problems],
        device=torch.device("cpu"),
        dtype=dtype,
    )


@pytest.mark.parametrize("shifted", [False, True], ids=["one-class", "offsets"])
@pytest.mark.parametrize("tokens", [(1,), (64, 33), (0, 31, 40)], ids=str)
def test_triton_decodes_many_bodies(tokens: tuple[int, ...], shifted: bool) -> None:
    problems = [typical(25, count, count, shifted=shifted) for count in tokens]
    expected = torch.cat([problem.decode(problem.encode(), "naive") for problem in problems], 1)
    assert torch.equal(on_triton(problems), expected)
    rounded = on_triton(problems, torch.bfloat16).float()
    torch.testing.assert_close(rounded, expected, atol=0, rtol=8e-3)  # one rounding


@pytest.mark.parametrize("seed", range(6))
def test_triton_decodes_any_problem(seed: int) -> None:
    problem = any_problem(12, 50, 5, [None, 2, 127][seed % 3], seed % 2 == 0, seed)
    assert torch.equal(on_triton([problem]), problem.decode(problem.encode(), "naive"))


def test_triton_takes_a_row_of_classes_for_each_body() -> None:
    one = any_problem(9, 40, 4, 1, False, 1)
    other = Problem(one.levels.flip(0), one.classes.flip(0), one.offsets, one.tables)
    expected = [problem.decode(problem.encode()) for problem in (one, other)]
    assert torch.equal(on_triton([one, other]), torch.cat(expected, 1))


def test_triton_refuses_damage() -> None:
    pytest.importorskip("triton")
    problem = typical(8, 40, 0, shifted=True)
    body, caught, total = problem.encode(), 0, 0
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs TRITON_INTERPRET=1 before triton is imported")
    from lexico_codec.kernels.entropy import triton_decode as triton_entropy

    for damaged in list(mutations(body, 0))[::3]:
        results: list[object] = []
        for decoder in ("triton", "naive"):
            try:
                if decoder == "triton":
                    made = triton_entropy.decode(
                        [damaged],
                        problem.classes,
                        problem.offsets,
                        problem.tables,
                        [40],
                        device=torch.device("cpu"),
                    )
                else:
                    made = problem.decode(damaged, "naive")
            except DamagedFrame:
                results.append(None)
            else:
                results.append(made.tolist())
        assert results[0] == results[1]
        total, caught = total + 1, caught + (results[0] is None)
    assert caught >= 0.9 * total
