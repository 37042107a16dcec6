"""The compiled CPU kernel gives the same bits whatever surrounds a row, a call or a process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import pytest
import torch

from lexico_codec.kernels import library
from lexico_codec.kernels.pursuit import compiled, naive
from lexico_codec.kernels.pursuit.codes import Codes
from tests.support.pursuit_problems import encode, equal, in_nan, problem, reconstruct, rows_of
from tests.support.pursuit_problems import isa as isa
from tests.support.waiting import PATIENCE_S

if not library.available():
    pytest.skip("the library is not compiled here", allow_module_level=True)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("tolerance", [None, 0.3])
@pytest.mark.usefixtures("isa")
def test_a_row_alone_gives_the_same_bits(tolerance: float | None) -> None:
    x, atoms = problem(65, 200, 150, seed=5)
    x[::7] *= 1e-3
    x[3::11] = 0
    batch = encode(x, atoms, 12, tolerance)
    if tolerance:
        assert len(batch.counts.unique()) > 4  # rows leave and enter at different steps
    for row in range(0, 150, 3):
        equal(encode(x[row : row + 1], atoms, 12, tolerance), rows_of(batch, slice(row, row + 1)))
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    equal(encode(x[order], atoms, 12, tolerance), rows_of(batch, order))


@pytest.mark.usefixtures("isa")
def test_threads_change_nothing() -> None:
    x, atoms = problem(64, 300, 1111, seed=6)
    torch.set_num_threads(1)
    one = encode(x, atoms, 6, 0.2)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        equal(encode(x, atoms, 6, 0.2), one)


@pytest.mark.usefixtures("isa")
def test_the_callers_arithmetic_changes_nothing_and_stays() -> None:
    x, atoms = problem(64, 100, 40, seed=18)
    x[:20] *= 1e-39
    expected = encode(x, atoms, 6)
    dense = reconstruct(expected, atoms)
    assert (expected.counts == 6).all()
    assert (expected.coefficients.abs() < 1e-37).any()
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor does not flush subnormals")
        codes = encode(x, atoms, 6)
        rebuilt = reconstruct(codes, atoms)
        still_flushed = torch.tensor(2.0**-126) * 0.5 == 0
    finally:
        torch.set_flush_denormal(False)
    assert still_flushed
    equal(codes, expected)
    assert torch.equal(rebuilt, dense)


_FORKED = """
import os, torch
from lexico_codec.kernels.pursuit import compiled
torch.set_num_threads(3)
atoms = torch.nn.functional.normalize(torch.randn(300, 64), dim=1)
x, packed = torch.randn(1, 2000, 64), compiled.pack(atoms, (0, 300))
before = compiled.omp(x, atoms, (0, 300), packed, 6)
child = os.fork()
same = all(map(torch.equal, before, compiled.omp(x, atoms, (0, 300), packed, 6)))
if child == 0:
    os._exit(not same)
assert same and os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_codes_too() -> None:
    subprocess.run([sys.executable, "-c", _FORKED], check=True, timeout=PATIENCE_S)


def test_calls_may_overlap() -> None:
    x, atoms = problem(64, 300, 400, seed=7)
    expected = encode(x, atoms, 6)
    with ThreadPoolExecutor(4) as pool:
        for codes in pool.map(lambda _: encode(x, atoms, 6), range(16)):
            equal(codes, expected)


@pytest.mark.usefixtures("isa")
def test_grouped_tables_equal_single_calls() -> None:
    sizes = [20, 257, 64, 1, 33][:3]
    starts = tuple(accumulate(sizes, initial=0))
    problems = [problem(48, n, 37, seed=n) for n in sizes]
    table = torch.cat([atoms for _, atoms in problems])
    vectors = torch.stack([x for x, _ in problems])
    grouped = Codes(*compiled.omp(vectors, table, starts, compiled.pack(table, starts), 5, 0.1))
    dense = compiled.reconstruct(
        grouped.indices, grouped.coefficients, grouped.counts, table, starts
    )
    for t, (x, atoms) in enumerate(problems):
        codes = rows_of(grouped, slice(37 * t, 37 * t + 37))
        equal(codes, encode(x, atoms, 5, 0.1))
        torch.testing.assert_close(dense[t], naive.reconstruct(codes, atoms))


@pytest.mark.usefixtures("isa")
def test_reads_nothing_beyond_its_input() -> None:
    x, atoms = problem(37, 61, 23, seed=11)
    expected = encode(x, atoms, 6)
    equal(encode(in_nan(x), in_nan(atoms), 6), expected)
    dense = reconstruct(expected, atoms)
    assert torch.equal(reconstruct(expected, in_nan(atoms)), dense)
