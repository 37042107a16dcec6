"""The Triton decoder in Triton's interpreter: whatever the naive twin writes, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lexico_codec.geometry import Pairing, Rope
from lexico_codec.kernels.dispatch import Kernel
from lexico_codec.kernels.memory import TableMemory
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import reconstruct, reconstruct_into
from lexico_codec.kernels.pursuit.preparation import Preparation
from lexico_codec.kernels.pursuit.quantise import from_e4m3

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before triton is imported", allow_module_level=True)

# dtype of the target: (atol, rtol) of values around 1; the last two are one rounding
BOTH: tuple[Kernel, Kernel] = ("triton", "naive")
TOLERANCES = {
    torch.float32: (3e-6, 3e-6),
    torch.float16: (1e-6, 1e-3),
    torch.bfloat16: (1e-6, 8e-3),
}
OVERFLOWS = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy's
PAIRINGS: list[Pairing] = ["half", "interleaved"]


def atoms_of(sizes: list[int], m: int, seed: int = 0, half: bool = True) -> Atoms:
    generator = torch.Generator().manual_seed(seed)
    stack = torch.nn.functional.normalize(torch.randn(sum(sizes), m, generator=generator), dim=1)
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return Atoms.of(stack.half().float() if half else stack, starts)


def codes_of(atoms: Atoms, rows: int, sparsity: int, quantised: bool, seed: int = 1) -> Codes:
    """Ragged codes of `rows` vectors a table: counts 0..sparsity, norms of 1e-3 to 1e3."""
    generator = torch.Generator().manual_seed(seed)
    total = atoms.tables * rows
    sizes = torch.tensor(atoms.sizes).repeat_interleave(rows)[:, None]
    drawn = torch.rand(total, sparsity, generator=generator)
    counts = torch.randint(0, sparsity + 1, (total,), generator=generator)
    counted = torch.arange(sparsity) < counts[:, None]
    norms = 10 ** (6 * torch.rand(total, 1, generator=generator) - 3)
    coefficients = norms * torch.randn(total, sparsity, generator=generator)
    codes = Codes(
        ((drawn * sizes).int() * counted).int(), coefficients * counted, counts.to(torch.int32)
    )
    return codes.quantised() if quantised else codes


def preparation_of(
    tables: int, heads: int, m: int, pairs: int, pairing: Pairing, moments: bool = True
) -> Preparation:
    generator = torch.Generator().manual_seed(2)
    return Preparation(
        rope=Rope(tuple(10000.0 ** (-i / pairs) for i in range(pairs)), pairing, 1.25),
        turned=tuple(table % 2 == 0 for table in range(tables)),
        first_position=777,
        mean=torch.randn(tables, heads, m, generator=generator) if moments else None,
        scale=torch.rand(tables, heads, generator=generator) + 0.5 if moments else None,
    )


Layout = Callable[[Tensor, int, int, int, int], TableMemory]


def engine(memory: Tensor, tables: int, tokens: int, heads: int, m: int) -> TableMemory:
    """`[tokens, heads, m]`, table after table, with a gap between them."""
    size = tokens * heads * m
    parts = [memory[16 + t * (size + 8) :][:size].view(tokens, heads, m) for t in range(tables)]
    return TableMemory.of(parts, tokens)


def hugging_face(memory: Tensor, tables: int, tokens: int, heads: int, m: int) -> TableMemory:
    """`[heads, tokens, m]` in a longer cache, from its third token on."""
    whole = memory[: tables * heads * (tokens + 7) * m].view(tables, heads, tokens + 7, m)
    return TableMemory.of([part[:, 3 : 3 + tokens].transpose(0, 1) for part in whole], tokens)


def padded(memory: Tensor, tables: int, tokens: int, heads: int, m: int) -> TableMemory:
    """Vectors at odd addresses, of which the components lie three apart."""
    size = tokens * heads * (m + 1) * 3
    parts = [
        memory[1 + t * size :][:size].view(tokens, heads, m + 1, 3)[:, :, :m, 0]
        for t in range(tables)
    ]
    return TableMemory.of(parts, tokens)


def paged(memory: Tensor, tables: int, tokens: int, heads: int, m: int) -> TableMemory:
    """Shuffled blocks of 4 tokens, keys and values of a block side by side."""
    needed = -(-tokens // 4)
    blocks = needed + 3
    pool = memory[: blocks * tables * 4 * heads * m].view(blocks, tables, 4, heads, m)
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(3))[:needed]
    return TableMemory.of([pool[:, t] for t in range(tables)], tokens, order)


def within_a_block(memory: Tensor, tables: int, tokens: int, heads: int, m: int) -> TableMemory:
    """From the fourth slot of a block on; heads before tokens."""
    blocks = -(-(3 + tokens) // 5) + 2
    pool = memory[: blocks * tables * 5 * heads * m].view(blocks, tables, heads, 5, m)
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(4))
    return TableMemory.over(pool.permute(1, 0, 3, 2, 4), tokens, order, 3)


def unlike(memory: Tensor, tables: int, tokens: int, heads: int, m: int) -> TableMemory:
    """Every other table transposed, as keys are in vLLM on a CPU."""
    size = tokens * heads * m
    runs = [memory[t * size :][:size] for t in range(tables)]
    parts = [
        run.view(heads, m, tokens).permute(2, 0, 1) if t % 2 else run.view(tokens, heads, m)
        for t, run in enumerate(runs)
    ]
    return TableMemory.of(parts, tokens)


LAYOUTS = [engine, hugging_face, padded, paged, within_a_block, unlike]


def check(
    codes: Codes,
    atoms: Atoms,
    layout: Layout,
    tokens: int,
    heads: int,
    dtype: torch.dtype = torch.float32,
    preparation: Preparation | None = None,
) -> Tensor:
    """Both kernels write the same into NaN-filled memory, and leave the same of it alone."""
    size = 200 + atoms.tables * (tokens + 16) * heads * (atoms.m + 1) * 3
    made = torch.full((size,), torch.nan, dtype=dtype)
    expected = made.clone()
    for memory, kernel in zip((made, expected), BOTH, strict=True):
        target = layout(memory, atoms.tables, tokens, heads, atoms.m)
        reconstruct_into(codes, atoms, target, preparation=preparation, kernel=kernel)
    assert int(expected.isfinite().sum()) == atoms.tables * tokens * heads * atoms.m
    atol, rtol = TOLERANCES[dtype]
    scale = max(1.0, float(expected.nan_to_num().abs().max())) if dtype == torch.float32 else 1.0
    torch.testing.assert_close(made, expected, atol=atol * scale, rtol=rtol, equal_nan=True)
    return made


@pytest.mark.parametrize("m", [1, 2, 7, 63, 64, 80, 100, 128, 256])
@pytest.mark.parametrize("quantised", [False, True])
def test_any_width(m: int, quantised: bool) -> None:
    atoms = atoms_of([50, 9], m, half=quantised)
    check(codes_of(atoms, 3 * 5, 4, quantised), atoms, engine, 5, 3)


@pytest.mark.parametrize("sparsity", [1, 3, 6, 8, 33, 64])
@pytest.mark.parametrize("quantised", [False, True])
def test_any_sparsity(sparsity: int, quantised: bool) -> None:
    atoms = atoms_of([100, 101], 64)
    check(codes_of(atoms, 14, sparsity, quantised), atoms, engine, 7, 2)


@pytest.mark.parametrize("rows", [0, 1, 2, 63, 1000])
def test_any_number_of_rows(rows: int) -> None:
    atoms = atoms_of([40, 30, 20], 32)
    check(codes_of(atoms, rows, 4, True), atoms, engine, rows, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_layouts(layout: Layout, dtype: torch.dtype) -> None:
    atoms = atoms_of([64, 128, 100], 64)
    preparation = preparation_of(3, 3, 64, 32, "half")
    codes = codes_of(atoms, 3 * 41, 8, True)
    check(codes, atoms, layout, 41, 3, dtype, preparation)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize(
    ("m", "pairs"), [(64, 32), (64, 8), (80, 16), (96, 10), (100, 21), (63, 31), (2, 1)]
)
def test_preparations(pairing: Pairing, m: int, pairs: int) -> None:
    atoms = atoms_of([70, 60, 50, 40], m)
    preparation = preparation_of(4, 2, m, pairs, pairing)
    check(codes_of(atoms, 2 * 19, 5, True), atoms, engine, 19, 2, preparation=preparation)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_slices_of_a_large_dictionary(pairing: Pairing) -> None:
    atoms = atoms_of([4096, 2000], 128)
    preparation = preparation_of(2, 3, 128, 48, pairing, moments=False)
    codes = codes_of(atoms, 3 * 30, 4, True)
    check(codes, atoms, hugging_face, 30, 3, torch.float16, preparation)


def test_consecutive_dictionaries_of_a_stack() -> None:
    atoms = atoms_of([30, 20, 60, 10], 64).narrow(1, 2)
    check(codes_of(atoms, 12, 8, True), atoms, paged, 6, 2)


def test_atoms_that_float16_does_not_hold_stay_exact() -> None:
    atoms = atoms_of([30], 64, half=False)
    codes = Codes(
        torch.arange(30, dtype=torch.int32)[:, None],
        torch.ones(30, 1),
        torch.ones(30, dtype=torch.int32),
    )
    assert torch.equal(reconstruct(codes, atoms, kernel="triton"), atoms.stack)


def test_padding_is_not_read() -> None:
    atoms = atoms_of([30], 64)
    codes = codes_of(atoms, 20, 8, True)
    past = torch.arange(8) >= codes.counts[:, None]
    littered = Codes(
        torch.where(past, 29, codes.indices).to(torch.int16),
        torch.where(past, 0x7F, codes.coefficients).to(torch.uint8),
        codes.counts,
        codes.exponents,
    )
    made, expected = (reconstruct(c, atoms, kernel="triton") for c in (littered, codes))
    assert torch.equal(made, expected)


@OVERFLOWS
def test_every_e4m3_number_is_exact() -> None:
    one = Atoms.of(torch.ones(1, 1))
    bits = torch.arange(256).to(torch.uint8).repeat(5)
    exponents = torch.tensor([-119, -8, 0, 9, 127]).to(torch.int8).repeat_interleave(256)
    count = torch.ones(len(bits), dtype=torch.uint8)
    indices = torch.zeros(len(bits), 1, dtype=torch.int16)
    made = reconstruct(Codes(indices, bits[:, None], count, exponents), one, kernel="triton")
    expected = from_e4m3(bits[:, None], exponents)
    assert torch.equal(made.nan_to_num(nan=-1.0), expected.nan_to_num(nan=-1.0))
    # At the least exponent the largest float32 bounds them.
    least = torch.full_like(exponents, -120)
    made = reconstruct(Codes(indices, bits[:, None], count, least), one, kernel="triton")
    torch.testing.assert_close(made, from_e4m3(bits[:, None], least), equal_nan=True)


@OVERFLOWS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_beyond_the_range_become_its_largest(dtype: torch.dtype) -> None:
    atoms = Atoms.of(torch.eye(4))
    signs = torch.tensor([[3e38], [-3e38], [65519.0], [-65536.0]])
    codes = Codes(torch.zeros(4, 1).int(), signs, torch.ones(4).int())
    preparation = Preparation(scale=torch.full((1, 1), 0.5))
    made, expected = torch.full((2, 4, 1, 4), torch.nan, dtype=dtype)
    for out, kernel in zip((made, expected), BOTH, strict=True):
        reconstruct_into(
            codes, atoms, TableMemory.of([out], 4), preparation=preparation, kernel=kernel
        )
    # The interpreter rounds to bfloat16 towards zero.
    torch.testing.assert_close(made, expected, atol=TOLERANCES[dtype][0], rtol=TOLERANCES[dtype][1])
    assert bool(made.isfinite().all())
    assert float(made[0, 0, 0]) == torch.finfo(dtype).max


def test_parts_in_separate_allocations() -> None:
    atoms = atoms_of([33, 44], 64)
    codes = codes_of(atoms, 10, 8, True)
    first, between, second = (torch.full((5, 2, 64), torch.nan) for _ in range(3))
    reconstruct_into(codes, atoms, TableMemory.of([second, first], 5), kernel="triton")
    expected = reconstruct(codes, atoms, kernel="naive")
    made = torch.cat([second, first]).view(-1, 64)
    scale = float(expected.abs().max())
    torch.testing.assert_close(made, expected, atol=3e-6 * scale, rtol=3e-6)
    assert bool(between.isnan().all())
