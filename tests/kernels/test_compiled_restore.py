"""The compiled decoder against the twin: every type, layout and instruction set here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexico_codec.kernels import library
from lexico_codec.kernels.library import ISA_VARIABLE
from lexico_codec.kernels.memory import TableMemory
from lexico_codec.kernels.pursuit import compiled
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import reconstruct_into
from lexico_proto.errors import InvalidInput, ShapeMismatch

if not library.available():
    pytest.skip("the library is not compiled here", allow_module_level=True)

# dtype: (atol, rtol); half types may round a sum that differs in its last bit to either side
TOLERANCES = {
    torch.float32: (1e-5, 1e-5),
    torch.float16: (1e-6, 1e-3),
    torch.bfloat16: (1e-6, 8e-3),
}
LAYOUTS = ["tokens", "heads", "paged", "padded", "transposed", "within a block", "unlike"]


@pytest.fixture(params=library.supported())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(ISA_VARIABLE, request.param)
    return str(request.param)


def atoms_of(tables: int, size: int, m: int) -> Atoms:
    generator = torch.Generator().manual_seed(size * m)
    stack = torch.nn.functional.normalize(torch.randn(tables * size, m, generator=generator), dim=1)
    return Atoms.of(stack, range(0, tables * size + 1, size))


def codes_of(atoms: Atoms, rows: int, sparsity: int, seed: int) -> Codes:
    """Quantised codes of `rows` vectors a table, counts 0..s, zeros after them."""
    generator = torch.Generator().manual_seed(seed)
    total = atoms.tables * rows
    counts = torch.randint(0, sparsity + 1, (total,), generator=generator)
    used = torch.arange(sparsity) < counts[:, None]
    indices = torch.randint(0, min(atoms.sizes), (total, sparsity), generator=generator) * used
    scale = 2.0 ** torch.randint(-3, 4, (total, 1), generator=generator)
    coefficients = torch.randn(total, sparsity, generator=generator) * scale * used
    return Codes(indices.int(), coefficients, counts.int()).quantised()


def target_of(
    layout: str, tables: int, tokens: int, heads: int, m: int, dtype: torch.dtype
) -> tuple[TableMemory, list[Tensor]]:
    """A target, and the tensors that it lies in, filled with NaN."""

    def none(*shape: int) -> Tensor:
        return torch.full(shape, float("nan"), dtype=dtype)

    if layout == "tokens":
        memory = none(tables, tokens, heads, m)
        return TableMemory.over(memory), [memory]
    if layout == "heads":
        memory = none(tables, heads, tokens + 3, m)
        return TableMemory.over(memory[:, :, 1 : tokens + 1].transpose(1, 2)), [memory]
    if layout == "padded":
        parts = [none(tokens + 2, heads + 1, m + 5) for _ in range(tables)]
        return TableMemory.of([part[1:-1, :heads, 2 : m + 2] for part in parts], tokens), parts
    if layout == "transposed":  # the components of a vector lie a token's heads apart
        memory = none(tables, m, tokens, heads)
        return TableMemory.over(memory.permute(0, 2, 3, 1)), [memory]
    first = 3 if layout == "within a block" else 0
    blocks = -(-(first + tokens) // 4)
    order = torch.randperm(blocks + 2, generator=torch.Generator().manual_seed(tokens))[:blocks]
    pools = [none(blocks + 2, 4, heads, m) for _ in range(tables)]
    if layout == "unlike":  # strides differ from table to table
        pools[1] = none(blocks + 2, heads, m, 4).permute(0, 3, 1, 2)
    return TableMemory.of(pools, tokens, order.int(), first), pools


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_twin_in_every_layout(isa: str, layout: str, dtype: torch.dtype) -> None:
    atoms = atoms_of(3, 70, 100)
    codes = codes_of(atoms, 13 * 5, 6, 1)
    made, memory = target_of(layout, 3, 13, 5, 100, dtype)
    twin, expected = target_of(layout, 3, 13, 5, 100, dtype)
    reconstruct_into(codes, atoms, made, kernel="compiled")
    reconstruct_into(codes, atoms, twin, kernel="naive")
    atol, rtol = TOLERANCES[dtype]
    for a, b in zip(memory, expected, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=rtol, equal_nan=True)  # NaN: untouched


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(0, 40),
    heads=st.integers(1, 3),
    m=st.sampled_from([1, 5, 16, 63, 64, 80, 96, 128, 257]),
    sparsity=st.integers(0, 9),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from(list(TOLERANCES)),
)
def test_any_shape(
    tokens: int, heads: int, m: int, sparsity: int, seed: int, dtype: torch.dtype
) -> None:
    atoms = atoms_of(2, 31, m)
    codes = codes_of(atoms, tokens * heads, sparsity, seed)
    made, twin = (target_of("tokens", 2, tokens, heads, m, dtype) for _ in range(2))
    reconstruct_into(codes, atoms, made[0], kernel="compiled")
    reconstruct_into(codes, atoms, twin[0], kernel="naive")
    atol, rtol = TOLERANCES[dtype]
    torch.testing.assert_close(made[1][0], twin[1][0], atol=atol, rtol=rtol)


def test_float16_rounds_as_torch_does(isa: str) -> None:
    """One atom a row: no sum, so the bits must be torch's, subnormals and ties included."""
    atoms = Atoms.of(torch.eye(16))
    value = torch.tensor([2.0**-k * f for k in range(-15, 27) for f in (1, 1.125, 1.875)])
    codes = Codes(
        torch.zeros(len(value), 1, dtype=torch.int32),
        value[:, None].clone(),
        torch.ones(len(value), dtype=torch.int32),
    ).quantised()
    for dtype in (torch.float16, torch.bfloat16):
        memory = torch.empty(1, len(value), 1, 16, dtype=dtype)
        reconstruct_into(codes, atoms, TableMemory.over(memory), kernel="compiled")
        assert torch.equal(memory[0, :, 0, 0], value.to(dtype))
        assert not memory[..., 1:].any()


def test_every_e4m3_number_is_read_right(isa: str) -> None:
    bits = torch.tensor([b for b in range(256) if b & 0x7F != 0x7F], dtype=torch.uint8)
    shape = (len(bits), 1)
    for exponent in (-120, -3, 0, 9, 127):
        codes = Codes(
            torch.zeros(shape, dtype=torch.int16),
            bits[:, None].clone(),
            torch.ones(len(bits), dtype=torch.uint8),
            torch.full((len(bits),), exponent, dtype=torch.int8),
        )
        memory = torch.empty(1, len(bits), 1, 1)
        reconstruct_into(
            codes, Atoms.of(torch.ones(1, 1)), TableMemory.over(memory), kernel="compiled"
        )
        assert torch.equal(memory.view(-1), codes.plain().coefficients.view(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_values_beyond_the_type_become_its_largest(isa: str, dtype: torch.dtype) -> None:
    """Nine of the largest coefficients on parallel atoms: beyond float32 too."""
    sign = torch.ones(50, 1)
    sign[::3] = -1
    coefficients = sign.expand(50, 9) * torch.finfo(torch.float32).max
    counts = torch.full((50,), 9, dtype=torch.int32)
    codes = Codes(torch.arange(9, dtype=torch.int32).repeat(50, 1), coefficients, counts)
    memory = torch.empty(1, 50, 1, 37, dtype=dtype)
    atoms = Atoms.of(torch.full((9, 37), 37**-0.5))
    reconstruct_into(codes.quantised(), atoms, TableMemory.over(memory), kernel="compiled")
    expected = sign.view(1, 50, 1, 1).expand(memory.shape) * torch.finfo(dtype).max
    assert torch.equal(memory, expected.to(dtype))


def bad(codes: Codes, **columns: Tensor) -> Codes:
    fields = ("indices", "coefficients", "counts", "exponents")
    return Codes(**({name: getattr(codes, name) for name in fields} | columns))


@pytest.mark.parametrize("index", [20, 32767, -1, -32768])
def test_an_index_outside_its_dictionary_is_refused(isa: str, index: int) -> None:
    atoms = atoms_of(2, 20, 8)
    codes = codes_of(atoms, 40, 3, 5)
    indices, counts = codes.indices.clone(), codes.counts.clone()
    indices[57, 1], counts[57] = index, 2
    memory = torch.empty(2, 40, 1, 8)
    with pytest.raises(InvalidInput, match="index"):
        reconstruct_into(
            bad(codes, indices=indices, counts=counts),
            atoms,
            TableMemory.over(memory),
            kernel="compiled",
        )


def test_bad_columns_are_refused(isa: str) -> None:
    atoms = atoms_of(2, 20, 8)
    codes = codes_of(atoms, 40, 3, 5)
    memory = torch.empty(2, 40, 1, 8)
    counts = codes.counts.clone()
    counts[3] = 4
    with pytest.raises(InvalidInput, match="count"):
        reconstruct_into(
            bad(codes, counts=counts), atoms, TableMemory.over(memory), kernel="compiled"
        )
    columns: Any = (codes.indices, codes.coefficients, codes.exponents, codes.counts)
    stack, starts = atoms.stack, atoms.starts
    with pytest.raises(ShapeMismatch, match="indices"):
        compiled.restore(columns, stack, starts, TableMemory.over(memory[:, 1:]))
    for other in (memory.double(), memory[:1]):
        with pytest.raises(ShapeMismatch, match="memory"):
            compiled.restore(columns, stack, starts, TableMemory.over(other))
    far = torch.empty(2, 40, 1, 2 * library.MAX_HEAD + 2)[..., ::2]
    with pytest.raises(ShapeMismatch, match="memory"):
        compiled.restore(columns, torch.ones(40, far.shape[-1]), starts, TableMemory.over(far))


def test_components_that_lie_apart(isa: str) -> None:
    atoms = atoms_of(2, 20, 8)
    codes = codes_of(atoms, 40, 3, 5)
    apart = torch.empty(2, 40, 1, 16)[..., ::2]
    together = torch.empty(2, 40, 1, 8)
    reconstruct_into(codes, atoms, TableMemory.over(apart), kernel="compiled")
    reconstruct_into(codes, atoms, TableMemory.over(together), kernel="compiled")
    assert torch.equal(apart, together)
