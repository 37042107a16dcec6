"""The entropy coder: damaged bodies do no harm, and twin and library say the same of them."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lexico_codec.kernels import library
from lexico_codec.kernels.entropy.coder import decode
from lexico_proto.errors import DamagedFrame
from tests.support.entropy_problems import (
    ISAS,
    KERNELS,
    any_problem,
    mutations,
    needs_library,
    typical,
)
from tests.support.entropy_problems import kernel as kernel


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shifted", [False, True], ids=["one-class", "offsets"])
def test_damage(kernel: str, shifted: bool, seed: int) -> None:
    problem = typical(40, 33 + 10 * seed, seed, shifted=shifted)
    body = problem.encode()
    caught = total = 0
    for damaged in mutations(body, seed):
        if damaged == body:
            continue
        total += 1
        try:
            values = problem.decode(damaged, kernel)
        except DamagedFrame:
            caught += 1
            with pytest.raises(DamagedFrame):
                problem.decode(damaged, "naive")
        else:
            assert bool(values.isfinite().all())
            assert torch.equal(values, problem.decode(damaged, "naive"))
    assert caught >= 0.9 * total


@needs_library
@settings(max_examples=200, deadline=None)
@given(
    words=st.binary(max_size=900),
    tokens=st.integers(1, 70),
    classes=st.lists(st.integers(-2, 5), max_size=30),
    isa=st.sampled_from(ISAS[1:] or [""]),
)
def test_any_bytes(words: bytes, tokens: int, classes: list[int], isa: str) -> None:
    """Streams of sound lengths with any content: what the twin says of them, the library says."""
    blocks = -(-tokens // 32)
    words = words.ljust(4 * tokens, b"\x5a")[: max(4 * tokens, len(words) // 2 * 2)]
    sizes = [4 * min(32, tokens - 32 * block) for block in range(blocks)]
    sizes[0] += len(words) - sum(sizes)
    body = struct.pack(f"<{blocks}I", *sizes) + words
    problem = any_problem(0, tokens, 4, 1, False, len(words))
    of = torch.tensor(classes, dtype=torch.int16)
    results: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.ISA_VARIABLE, isa)
        for kernel in KERNELS:
            try:
                made = decode(
                    body, of, problem.offsets, problem.tables, tokens, levels=True, kernel=kernel
                )
            except DamagedFrame:
                results.append(None)
            else:
                results.append(made.tolist())
    assert results[0] == results[1]


def test_memory_is_bounded_by_the_body(kernel: str) -> None:
    problem = typical(3, 64, 0, shifted=False)
    with pytest.raises(DamagedFrame):
        decode(
            problem.encode(), problem.classes, None, problem.tables, tokens=1 << 50, kernel=kernel
        )


def test_any_buffer_and_address(kernel: str) -> None:
    problem = typical(10, 50, 0, shifted=True)
    body = problem.encode()
    for shift in range(3):
        odd = memoryview(bytearray(shift) + body)[shift:]
        made = decode(
            odd.toreadonly(),
            problem.classes,
            problem.offsets,
            problem.tables,
            50,
            levels=True,
            kernel=kernel,
        )
        assert torch.equal(made, problem.levels)
