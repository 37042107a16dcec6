"""The fused Triton encoder in Triton's interpreter, against the naive twin.

fp16 and fp8 scoring only: the interpreter multiplies bf16 wrongly. tests/gpu covers the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lexico_codec.geometry import Pairing, Rope
from lexico_codec.kernels.pursuit import naive
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import Scoring, encode
from lexico_codec.kernels.pursuit.preparation import Preparation
from lexico_proto.errors import ConfigurationError, NonFiniteCache

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before triton is imported", allow_module_level=True)

from lexico_codec.kernels.pursuit import triton_encode, tuning

SMALL = tuning.Launch(16, 32, 8, 4, 2, 2, None, 1)
ERROR_RATIO = 1.01  # of squared errors, to the exact twin
PAIRINGS: list[Pairing] = ["half", "interleaved"]
OVERFLOWS = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's


@pytest.fixture(autouse=True)
def small_tiles_and_littered_scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def littered(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if dtype == torch.float8_e4m3fn:
            return torch.full(shape, 0x7F, dtype=torch.uint8, device=device).view(dtype)
        litter = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max
        return torch.full(shape, litter, dtype=dtype, device=device)

    monkeypatch.setattr(triton_encode, "_scratch", littered)
    with tuning.forced(SMALL):
        yield


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit_rows(rows: int, m: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(drawn(rows, m, seed=seed), dim=1).half().float()


def stacked(sizes: list[int], m: int) -> Atoms:
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return Atoms.of(unit_rows(sum(sizes), m), starts)


def triton(
    vectors: Tensor,
    atoms: Atoms | Tensor,
    sparsity: int,
    tolerance: float | None = None,
    preparation: Preparation | None = None,
    scoring: Scoring = "fp16",
) -> Codes:
    return encode(
        vectors,
        atoms,
        sparsity,
        tolerance,
        preparation=preparation,
        scoring=scoring,
        kernel="triton",
    )


def errors(vectors: Tensor, codes: Codes, atoms: Tensor) -> Tensor:
    """Squared errors of the rows, float64."""
    exact = Codes(codes.indices, codes.coefficients.double(), codes.counts)
    made = naive.reconstruct(exact, atoms.double())
    return ((vectors.double() - made) ** 2).sum(1)


def check(
    vectors: Tensor, codes: Codes, atoms: Tensor, sparsity: int, tolerance: float | None = None
) -> Codes:
    """Holds codes of `[B, m]` against the twin's, and returns those."""
    wide = vectors.float()
    expected = naive.omp(wide, atoms, sparsity, tolerance)
    made, best = errors(wide, codes, atoms), errors(wide, expected, atoms)
    rounding = 1e-11 * (wide.double() ** 2).sum(1)  # both are exact to float32
    assert made.sum() <= ERROR_RATIO * best.sum() + rounding.sum()
    same = (codes.indices == expected.indices).all(1)
    assert same.float().mean() >= 0.9  # the others are near-ties
    assert torch.equal(codes.counts[same], expected.counts[same])
    scale = wide.abs().amax(1, keepdim=True)[same]
    close = (codes.coefficients[same] - expected.coefficients[same]).abs() <= 2e-3 * scale
    assert bool(close.all())
    past = torch.arange(sparsity) >= codes.counts[:, None]
    assert not codes.indices[past].any()
    assert not codes.coefficients[past].any()
    assert (codes.indices.dtype, codes.counts.dtype) == (torch.int32, torch.int32)
    return expected


@pytest.mark.parametrize(
    ("m", "size", "sparsity", "rows"),
    [(64, 300, 8, 53), (48, 129, 5, 37), (16, 20, 4, 19), (20, 31, 3, 16), (64, 64, 1, 7)]
    + [(m, 77, 4, 18) for m in (80, 96, 128, 256)],
)
def test_codes_are_those_of_the_twin(m: int, size: int, sparsity: int, rows: int) -> None:
    atoms, vectors = unit_rows(size, m), drawn(rows, m)
    check(vectors, triton(vectors, atoms, sparsity), atoms, sparsity)


def test_full_rank_is_exact_to_rounding() -> None:
    atoms, vectors = unit_rows(96, 16), drawn(17, 16)
    codes = triton(vectors, atoms, 16)
    assert bool((errors(vectors, codes, atoms) <= 1e-8 * (vectors**2).sum(1)).all())


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int) -> None:
    atoms, vectors = unit_rows(40, 32), drawn(rows, 32)
    codes = triton(vectors, atoms, 4)
    assert codes.indices.shape == (rows, 4)
    if rows:
        check(vectors, codes, atoms, 4)


def test_one_atom() -> None:
    atoms, vectors = unit_rows(1, 16), drawn(20, 16)
    codes = triton(vectors, atoms, 1)
    assert not codes.indices.any()
    torch.testing.assert_close(codes.coefficients, vectors @ atoms.T, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_input_types(dtype: torch.dtype) -> None:
    atoms, vectors = unit_rows(70, 32), drawn(21, 32).to(dtype)
    check(vectors, triton(vectors, atoms, 4), atoms, 4)


def test_any_strides() -> None:
    atoms = stacked([70, 40], 32)
    plain = drawn(2, 9, 3, 32)
    expected = triton(plain, atoms, 2)
    far = torch.zeros(2, 3, 64, 11)  # [tables, heads, m, tokens], every second component
    strided = far.permute(0, 3, 1, 2)[:, 1:10, :, ::2]
    strided.copy_(plain)
    spread = plain[:, :1].expand(2, 9, 3, 32)  # stride 0
    assert_equal(triton(strided, atoms, 2), expected)
    assert_equal(triton(spread, atoms, 2), triton(spread.contiguous(), atoms, 2))


def test_tables_of_different_sizes() -> None:
    atoms = stacked([33, 200, 64, 5], 32)
    vectors = drawn(4, 7, 3, 32)
    codes = triton(vectors, atoms, 4)
    for table in range(4):
        part = slice(21 * table, 21 * (table + 1))
        own = Codes(codes.indices[part], codes.coefficients[part], codes.counts[part])
        check(vectors[table].reshape(-1, 32), own, atoms.dictionary(table), 4)
    narrowed = triton(vectors[1:3], atoms.narrow(1, 2), 4)
    assert torch.equal(narrowed.indices, codes.indices[21:63])
    assert torch.equal(narrowed.coefficients, codes.coefficients[21:63])


def test_a_job_does_not_see_the_one_before() -> None:
    """More tiles than programs: codes do not depend on who shares them."""
    atoms, vectors = unit_rows(50, 16), drawn(130, 16)
    vectors[16:32] = 0
    codes = triton(vectors, atoms, 4)
    check(vectors, codes, atoms, 4)
    tail = triton(vectors[112:], atoms, 4)
    assert torch.equal(tail.indices, codes.indices[112:])
    assert torch.equal(tail.coefficients, codes.coefficients[112:])


def test_zero_vectors_and_atoms() -> None:
    atoms, vectors = unit_rows(70, 32), drawn(20, 32)
    vectors[3] = 0
    vectors[4] = 2.5 * atoms[69]
    vectors[5] = -atoms[0]
    codes = triton(vectors, atoms, 4)
    assert codes.counts[3:6].tolist() == [0, 1, 1]
    assert codes.indices[4:6, 0].tolist() == [69, 0]
    torch.testing.assert_close(codes.coefficients[4:6, 0], torch.tensor([2.5, -1.0]))
    check(vectors, codes, atoms, 4)


def test_duplicates_of_atoms_are_picked_once() -> None:
    distinct = unit_rows(40, 16)
    atoms, vectors = torch.cat([distinct, -distinct, distinct]), drawn(33, 16)
    codes = triton(vectors, atoms, 6)
    picked = codes.indices % 40
    for row, count in zip(picked.tolist(), codes.counts.tolist(), strict=True):
        assert len(set(row[:count])) == count
    best = naive.omp(vectors, distinct, 6)
    assert errors(vectors, codes, atoms).sum() <= 1.01 * errors(vectors, best, distinct).sum()


def test_a_dependent_atom_ends_the_row() -> None:
    atoms = torch.eye(16)[:2].repeat(4, 1)
    vectors = drawn(18, 16)
    codes = triton(vectors, atoms, 8)
    assert codes.counts.tolist() == [2] * 18
    assert not codes.indices[:, 2:].any()


@pytest.mark.parametrize("norm", [1e-37, 1e-30, 1e-6, 1e5, 1e30, 1e37])
def test_norms_far_from_one(norm: float) -> None:
    atoms, vectors = unit_rows(70, 32), drawn(20, 32)
    usual, far = triton(vectors, atoms, 4), triton(vectors * norm, atoms, 4)
    assert torch.equal(far.indices, usual.indices)
    torch.testing.assert_close(far.coefficients / norm, usual.coefficients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tolerance", [0.0, 0.2, 0.5, 0.9])
def test_tolerance(tolerance: float) -> None:
    atoms, vectors = unit_rows(200, 16), drawn(40, 16)
    codes = triton(vectors, atoms, 8, tolerance)
    check(vectors, codes, atoms, 8, tolerance)
    done = codes.counts < 8
    error, norm = errors(vectors, codes, atoms), (vectors**2).sum(1)
    assert bool((error[done] <= 1.0001 * tolerance**2 * norm[done]).all())


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize(("m", "pairs"), [(32, 16), (32, 6), (24, 12)])
def test_preparation(pairing: Pairing, m: int, pairs: int) -> None:
    atoms, vectors = stacked([70, 40, 50], m), drawn(3, 9, 2, m).half()
    rope = Rope(tuple(100.0 ** (-i / pairs) for i in range(pairs)), pairing, 1.25)
    preparation = Preparation(
        rope, (True, False, True), 77, drawn(3, 2, m, seed=3), drawn(3, 2, seed=4).abs() + 0.5
    )
    codes = triton(vectors, atoms, 2, preparation=preparation)
    prepared = preparation.apply(vectors)
    for table in range(3):
        part = slice(18 * table, 18 * (table + 1))
        own = Codes(codes.indices[part], codes.coefficients[part], codes.counts[part])
        check(prepared[table].reshape(-1, m), own, atoms.dictionary(table), 2)


@pytest.mark.parametrize("field", ["rope", "mean", "scale"])
def test_preparation_in_part(field: str) -> None:
    atoms, vectors = stacked([70, 40], 16), drawn(2, 9, 2, 16)
    preparation = {
        "rope": Preparation(Rope((1.0, 0.1)), (True, False)),
        "mean": Preparation(mean=drawn(2, 2, 16, seed=3)),
        "scale": Preparation(scale=drawn(2, 2, seed=4).abs()),
    }[field]
    codes = triton(vectors, atoms, 2, preparation=preparation)
    expected = triton(preparation.apply(vectors), atoms, 2)
    assert torch.equal(codes.indices, expected.indices)
    torch.testing.assert_close(codes.coefficients, expected.coefficients, rtol=1e-4, atol=1e-5)


@OVERFLOWS
@pytest.mark.parametrize("norm", [1e-42, 1e-37, 1e-30, 1.0, 1e30, 1e37])
def test_quantised_codes_are_the_plain_ones_rounded(norm: float) -> None:
    atoms, vectors = unit_rows(70, 32), drawn(20, 32) * norm
    vectors[3] = 0
    plain = triton(vectors, atoms, 4, 0.75)
    assert_equal(
        encode(vectors, atoms, 4, 0.75, quantised=True, kernel="triton"), plain.quantised()
    )


def test_every_rounding_of_e4m3() -> None:
    """Over an identity the coefficients are the components, here many of them midpoints."""
    values = torch.arange(1, 3585) / 8.0
    vectors = torch.stack([torch.full_like(values, 448.0), values, -values * 2**-12], 1)
    vectors = torch.nn.functional.pad(vectors, (0, 13))
    with tuning.forced(tuning.Launch(512, 16, 512, 4, 2, 2, None, 1)):
        ours = triton(vectors, torch.eye(16), 3)
        codes = encode(vectors, torch.eye(16), 3, quantised=True, kernel="triton")
    assert bool((ours.coefficients.abs().amax(1) == 448).all())
    assert len(ours.coefficients.unique()) > 7000
    assert_equal(codes, ours.quantised())


def test_equal_calls_give_equal_codes() -> None:
    atoms, vectors = unit_rows(100, 16), drawn(40, 16)
    assert_equal(triton(vectors, atoms, 5), triton(vectors, atoms, 5))


@pytest.mark.parametrize(("rows", "columns", "part"), [(16, 16, 16), (32, 64, 8), (64, 128, 32)])
def test_tiles_of_other_sizes(rows: int, columns: int, part: int) -> None:
    atoms, vectors = unit_rows(150, 32), drawn(70, 32)
    with tuning.forced(tuning.Launch(rows, columns, part, 4, 2, 1, None, 1)):
        check(vectors, triton(vectors, atoms, 5), atoms, 5)


def test_fp8_scoring_costs_little() -> None:
    atoms, vectors = unit_rows(300, 64), drawn(100, 64)
    codes = triton(vectors, atoms, 8, scoring="fp8")
    best = naive.omp(vectors, atoms, 8)
    ratio = errors(vectors, codes, atoms).sum() / errors(vectors, best, atoms).sum()
    assert float(ratio) <= 1.02  # 1.005 is usual; a small sample


def test_fp8_scoring_needs_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_encode, "_INTERPRETED", (8, 0))
    with pytest.raises(ConfigurationError, match=r"8\.9"):
        triton(drawn(3, 16), unit_rows(20, 16), 2, scoring="fp8")


@OVERFLOWS
def test_overflow_is_an_error() -> None:
    atoms, vectors = unit_rows(20, 16), drawn(1, 5, 1, 16)
    vectors[0, 2] = 3e38
    with pytest.raises(NonFiniteCache):
        triton(vectors, atoms, 4)
    preparation = Preparation(scale=torch.full((1, 1), 1e4))
    vectors[0, 2] = 1e36
    with pytest.raises(NonFiniteCache):
        triton(vectors, atoms, 4, preparation=preparation)


def test_scratch_does_not_grow_with_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        seen.append(torch.Size(shape).numel() * dtype.itemsize)
        return torch.empty(shape, dtype=dtype, device=device)

    monkeypatch.setattr(triton_encode, "_scratch", counted)
    atoms, totals = unit_rows(20, 16), []
    for rows in (100, 200):
        seen.clear()
        triton(drawn(rows, 16), atoms, 2)
        totals.append(sum(seen))
    assert totals[0] == totals[1]
    monkeypatch.setattr(tuning, "SCRATCH_BYTES", 1)  # one program at least
    seen.clear()
    triton(drawn(100, 16), atoms, 2)
    assert sum(seen) * 3 == totals[0]


def test_variants_name_every_argument() -> None:
    names = [variant.name for variant in triton_encode.variants(90)]
    assert len(names) == len(set(names))
    for variant in triton_encode.variants(90):
        constants = {name for name, kind in variant.signature.items() if kind == "constexpr"}
        assert constants == set(variant.constexprs)


def assert_equal(codes: Codes, expected: Codes) -> None:
    """Bit for bit."""
    for name in ("indices", "coefficients", "counts", "exponents"):
        a, b = getattr(codes, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), name
