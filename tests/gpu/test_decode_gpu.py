"""The Triton decoder on a device, at the sizes and in the dtypes of real caches."""

from __future__ import annotations

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

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# dtype of the target: (atol, rtol) of values around 1; the last two are one rounding
BOTH: tuple[Kernel, Kernel] = ("triton", "naive")
TOLERANCES = {
    torch.float32: (2e-5, 2e-5),  # fast division, other order of sums
    torch.float16: (2e-5, 1e-3),
    torch.bfloat16: (2e-5, 8e-3),
}
LAYOUTS = ["engine", "hugging_face", "padded", "paged", "within a block", "odd address"]


def atoms_of(tables: int, size: int, m: int, half: bool = True) -> Atoms:
    generator = torch.Generator(device="cuda").manual_seed(size + m)
    drawn = torch.randn(tables * size, m, generator=generator, device="cuda")
    stack = torch.nn.functional.normalize(drawn, dim=1)
    starts = range(0, (tables + 1) * size, size)
    return Atoms.of(stack.half().float() if half else stack, starts)


def codes_of(atoms: Atoms, rows: int, sparsity: int, quantised: bool = True) -> Codes:
    """Ragged codes of `rows` vectors a table, counts 0..sparsity."""
    generator = torch.Generator(device="cuda").manual_seed(rows + sparsity)
    total = atoms.tables * rows
    sizes = torch.tensor(atoms.sizes, device="cuda").repeat_interleave(rows)[:, None]
    drawn = torch.rand(total, sparsity, generator=generator, device="cuda", dtype=torch.float64)
    counts = torch.randint(0, sparsity + 1, (total,), generator=generator, device="cuda")
    counted = torch.arange(sparsity, device="cuda") < counts[:, None]
    coefficients = torch.randn(total, sparsity, generator=generator, device="cuda") * counted
    codes = Codes((drawn * sizes).int() * counted, coefficients, counts.int())
    return codes.quantised() if quantised else codes


def preparation_of(tables: int, heads: int, m: int, pairs: int, pairing: Pairing) -> Preparation:
    generator = torch.Generator(device="cuda").manual_seed(2)
    return Preparation(
        rope=Rope(tuple(10000.0 ** (-i / pairs) for i in range(pairs)), pairing, 1.25),
        turned=tuple(table % 2 == 0 for table in range(tables)),
        first_position=4242,
        mean=torch.randn(tables, heads, m, generator=generator, device="cuda"),
        scale=torch.rand(tables, heads, generator=generator, device="cuda") + 0.5,
    )


def target_of(
    memory: Tensor, layout: str, tables: int, tokens: int, heads: int, m: int
) -> TableMemory:
    """Parts within `memory`; see the interpreter's tests for the layouts."""
    size = tokens * heads * m
    if layout in ("engine", "odd address"):
        first = 16 if layout == "engine" else 3
        parts = [
            memory[first + t * (size + 24) :][:size].view(tokens, heads, m) for t in range(tables)
        ]
        return TableMemory.of(parts, tokens)
    if layout == "hugging_face":
        whole = memory[: tables * heads * (tokens + 7) * m].view(tables, heads, tokens + 7, m)
        return TableMemory.of([part[:, 3 : 3 + tokens].transpose(0, 1) for part in whole], tokens)
    if layout == "padded":
        size = tokens * heads * (m + 1) * 2
        views = [memory[t * size :][:size].view(tokens, heads, m + 1, 2) for t in range(tables)]
        return TableMemory.of([view[:, :, :m, 0] for view in views], tokens)
    first = 11 if layout == "within a block" else 0
    blocks = -(-(first + tokens) // 16) + 5
    pool = memory[: blocks * tables * 16 * heads * m].view(blocks, tables, 16, heads, m)
    generator = torch.Generator(device="cuda").manual_seed(3)
    order = torch.randperm(blocks, generator=generator, device="cuda")[: blocks - 5]
    return TableMemory.of([pool[:, t] for t in range(tables)], tokens, order.int(), first)


def check(
    atoms: Atoms,
    codes: Codes,
    tokens: int,
    heads: int,
    dtype: torch.dtype,
    layout: str = "engine",
    preparation: Preparation | None = None,
) -> None:
    """Both kernels write the same into NaN-filled memory, and leave the same of it alone."""
    size = 400 + atoms.tables * (tokens + 112) * heads * (atoms.m + 1) * 2
    made = torch.full((size,), torch.nan, dtype=dtype, device="cuda")
    expected = made.clone()
    for memory, kernel in zip((made, expected), BOTH, strict=True):
        target = target_of(memory, layout, atoms.tables, tokens, heads, atoms.m)
        reconstruct_into(codes, atoms, target, preparation=preparation, kernel=kernel)
    assert int(expected.isfinite().sum()) == atoms.tables * tokens * heads * atoms.m
    atol, rtol = TOLERANCES[dtype]
    torch.testing.assert_close(made, expected, atol=atol, rtol=rtol, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    atoms = atoms_of(6, 4096, 128)
    preparation = preparation_of(6, 8, 128, 64, "half")
    check(atoms, codes_of(atoms, 8 * 333, 8), 333, 8, dtype, layout, preparation)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize(
    ("m", "pairs", "size"),
    [
        (128, 64, 4096),
        (128, 32, 1024),
        (64, 32, 1280),
        (80, 16, 4096),
        (96, 10, 512),
        (100, 21, 99),
    ],
)
def test_preparations(pairing: Pairing, m: int, pairs: int, size: int) -> None:
    atoms = atoms_of(4, size, m)
    preparation = preparation_of(4, 3, m, pairs, pairing)
    check(atoms, codes_of(atoms, 3 * 501, 8), 501, 3, torch.float32, "engine", preparation)


@pytest.mark.parametrize("m", [1, 2, 7, 63, 64, 72, 128, 200, 256])
@pytest.mark.parametrize("quantised", [False, True])
def test_any_width(m: int, quantised: bool) -> None:
    atoms = atoms_of(2, 300, m, half=quantised)
    check(atoms, codes_of(atoms, 5 * 101, 4, quantised), 101, 5, torch.float32)


@pytest.mark.parametrize("sparsity", [1, 3, 6, 16, 32, 64])
@pytest.mark.parametrize("quantised", [False, True])
def test_any_sparsity(sparsity: int, quantised: bool) -> None:
    atoms = atoms_of(2, 1000, 128)
    check(atoms, codes_of(atoms, 7 * 97, sparsity, quantised), 97, 7, torch.float32)


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 4099])
def test_any_number_of_rows(rows: int) -> None:
    atoms = atoms_of(3, 4096, 128)
    check(atoms, codes_of(atoms, rows, 8), rows, 1, torch.float16)


def test_whole_model() -> None:
    """Llama-3.1-8B, 2048 tokens: 64 dictionaries in one launch, the same when repeated."""
    tables, tokens, heads, m = 64, 2048, 8, 128
    atoms = atoms_of(tables, 4096, m)
    codes = codes_of(atoms, tokens * heads, 8)
    made, again, expected = torch.full(
        (3, tables, tokens, heads, m), torch.nan, dtype=torch.bfloat16, device="cuda"
    )
    preparation = preparation_of(tables, heads, m, 64, "half")
    for out, kernel in zip((made, again, expected), (BOTH[0], *BOTH), strict=True):
        target = TableMemory.of(list(out), tokens)
        reconstruct_into(codes, atoms, target, preparation=preparation, kernel=kernel)
    assert torch.equal(made, again)
    atol, rtol = TOLERANCES[torch.bfloat16]
    torch.testing.assert_close(made, expected, atol=atol, rtol=rtol)


def test_offsets_beyond_int32() -> None:
    """A part of more than 2^31 elements, written at its end."""
    tokens, heads, m = 3, 2, 64
    stride = (1 << 30) + 64
    memory = torch.full((2 * stride + heads * m,), torch.nan, dtype=torch.float16, device="cuda")
    part = memory.as_strided((tokens, heads, m), (stride, m, 1))
    atoms = atoms_of(1, 500, m)
    codes = codes_of(atoms, tokens * heads, 8)
    reconstruct_into(codes, atoms, TableMemory.of([part], tokens), kernel="triton")
    expected = reconstruct(codes, atoms, kernel="naive").view(tokens, heads, m)
    torch.testing.assert_close(part.float(), expected, atol=2e-5, rtol=1e-3)
    assert int(memory.isfinite().sum()) == tokens * heads * m


def test_parts_in_separate_allocations() -> None:
    atoms = atoms_of(2, 1024, 128)
    codes = codes_of(atoms, 1000, 8)
    late, _, early = (torch.full((500, 2, 128), torch.nan, device="cuda") for _ in range(3))
    reconstruct_into(codes, atoms, TableMemory.of([early, late], 500), kernel="triton")
    expected = reconstruct(codes, atoms, kernel="naive")
    made = torch.cat([early, late]).view(-1, 128)
    torch.testing.assert_close(made, expected, atol=2e-5, rtol=2e-5)


def test_another_stream_than_the_first() -> None:
    atoms = atoms_of(2, 1024, 128)
    codes = codes_of(atoms, 1000, 8)
    expected = reconstruct(codes, atoms, kernel="triton")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        made = reconstruct(codes, atoms, kernel="triton")
    torch.cuda.synchronize()
    assert torch.equal(made, expected)


def test_every_e4m3_number_is_exact() -> None:
    one = Atoms.of(torch.ones(1, 1, device="cuda"))
    bits = torch.arange(256, device="cuda").to(torch.uint8).repeat(5)
    exponents = torch.tensor([-119, -8, 0, 9, 110], device="cuda")
    exponents = exponents.to(torch.int8).repeat_interleave(256)
    count = torch.ones(len(bits), dtype=torch.uint8, device="cuda")
    indices = torch.zeros(len(bits), 4, dtype=torch.int16, device="cuda")
    columns = torch.zeros(len(bits), 4, dtype=torch.uint8, device="cuda")
    columns[:, 0] = bits
    made = reconstruct(Codes(indices, columns, count, exponents), one, kernel="triton")
    expected = from_e4m3(bits[:, None].cpu(), exponents.cpu())  # pow need not be exact on CUDA
    assert torch.equal(made.cpu().nan_to_num(nan=-1.0), expected.nan_to_num(nan=-1.0))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_values_beyond_the_range_become_its_largest(dtype: torch.dtype) -> None:
    atoms = Atoms.of(torch.eye(4, device="cuda"))
    values = torch.tensor([[3e38], [-3e38], [65519.0], [-65536.0]], device="cuda")
    zeros = torch.zeros(4, 1, dtype=torch.int32, device="cuda")
    codes = Codes(zeros, values, torch.ones(4, dtype=torch.int32, device="cuda"))
    preparation = Preparation(scale=torch.full((1, 1), 0.5, device="cuda"))
    made, expected = torch.full((2, 4, 1, 4), torch.nan, dtype=dtype, device="cuda")
    for out, kernel in zip((made, expected), BOTH, strict=True):
        target = TableMemory.of([out], 4)
        reconstruct_into(codes, atoms, target, preparation=preparation, kernel=kernel)
    assert torch.equal(made, expected)
    assert float(made[0, 0, 0]) == torch.finfo(dtype).max
