"""Attention over sparse codes on a device, at the sizes of real models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lexico_codec.kernels.attend.coded import attend
from lexico_codec.kernels.attend.layer import CodedLayer
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# dtype of query and exact tokens: (atol, rtol), against float64
TOLERANCES = {
    torch.float32: (1e-4, 1e-4),  # fast exponentials, products of three tf32 parts
    torch.float16: (1e-4, 1e-3),
    torch.bfloat16: (1e-4, 8e-3),
}


def atoms_of(keys: int, values: int, m: int) -> Atoms:
    generator = torch.Generator(device="cuda").manual_seed(keys + m)
    drawn = torch.randn(keys + values, m, generator=generator, device="cuda")
    stack = torch.nn.functional.normalize(drawn, dim=1).half().float()
    return Atoms.of(stack, (0, keys, keys + values))


def codes_of(atoms: Atoms, tokens: int, heads: int, sparsity: int, ragged: bool = True) -> Codes:
    """One atom in 8 of 10 rows, the others drawn from all."""
    generator = torch.Generator(device="cuda").manual_seed(tokens + sparsity)
    rows = 2 * tokens * heads
    sizes = torch.tensor(atoms.sizes, device="cuda").repeat_interleave(tokens * heads)[:, None]
    drawn = torch.rand(rows, sparsity, generator=generator, device="cuda")
    indices = (drawn * 0.999 * sizes).int()
    hot = torch.rand(rows, generator=generator, device="cuda") < 0.8
    indices[:, 0] = torch.where(hot, 7, indices[:, 0])
    counts = torch.full((rows,), sparsity, device="cuda")
    if ragged:
        counts = torch.randint(0, sparsity + 1, (rows,), generator=generator, device="cuda")
    counted = torch.arange(sparsity, device="cuda") < counts[:, None]
    coefficients = torch.randn(rows, sparsity, generator=generator, device="cuda") * counted
    return Codes(indices * counted, coefficients, counts.int()).quantised()


def drawn(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator(device="cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").to(dtype)


def exact_attention(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    group, (q_len, length) = query.shape[0] // len(keys), (query.shape[1], keys.shape[1])
    keys, values = (part.double().repeat_interleave(group, 0) for part in (keys, values))
    scores = query.double() @ keys.transpose(1, 2) * scale
    past = length - q_len + torch.arange(q_len, device="cuda")
    hidden = torch.arange(length, device="cuda") > past[:, None]
    return scores.masked_fill(hidden, -torch.inf).softmax(2) @ values


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize(
    ("m", "heads", "group", "q_len", "atoms", "tokens", "sparsity", "exact"),
    [
        pytest.param(128, 8, 4, 1, 4096, 16384, 8, 132, id="llama-16k-s8"),
        pytest.param(128, 8, 4, 1, 4096, 5000, 16, 132, id="llama-5000-s16"),
        pytest.param(128, 8, 4, 3, 4096, 4097, 8, 35, id="llama-4097-q3"),
        pytest.param(64, 3, 3, 1, 1024, 777, 8, 40, id="smollm-777"),
        pytest.param(128, 2, 8, 2, 1023, 8191, 5, 64, id="g8-q2-odd"),
        pytest.param(80, 5, 1, 8, 511, 100, 12, 8, id="m80-g1-q8"),
        pytest.param(128, 1, 1, 1, 4096, 1, 8, 1, id="one"),
        pytest.param(128, 8, 4, 1, 4096, 0, 8, 200, id="none"),
        pytest.param(128, 2, 4, 100, 1024, 3000, 8, 128, id="long-query"),
    ],
)
def test_device_is_dense_attention(
    m: int, heads: int, group: int, q_len: int, atoms: int, tokens: int, sparsity: int,
    exact: int, dtype: torch.dtype,
) -> None:  # fmt: skip
    table = atoms_of(atoms, atoms + 1, m)
    layer = CodedLayer.empty(table, heads, sparsity)
    codes = codes_of(table, tokens, heads, sparsity)
    layer.append(codes)
    keys, values = layer.dense(torch.float32)
    on_cpu = CodedLayer.empty(Atoms.of(table.stack.cpu(), table.starts), heads, sparsity)
    on_cpu.append(codes.to("cpu"))
    for dense, expected in zip((keys, values), on_cpu.dense(torch.float32), strict=True):
        torch.testing.assert_close(dense.cpu(), expected, atol=1e-5, rtol=1e-5)
    query = drawn(heads * group, q_len, m, dtype=dtype, seed=1)
    recent = drawn(2, heads, exact, m, dtype=dtype, seed=2)
    whole = [torch.cat([a, b.float()], 1) for a, b in zip((keys, values), recent, strict=True)]
    expected = exact_attention(query, whole[0], whole[1], 0.11)
    atol, rtol = TOLERANCES[dtype]
    for kernel in ("triton", "naive"):
        out = attend(query, layer, recent[0], recent[1], 0.11, kernel=kernel)
        torch.testing.assert_close(out.double(), expected, atol=atol, rtol=rtol)
    again = attend(query, layer, recent[0], recent[1], 0.11, kernel="triton")
    first = attend(query, layer, recent[0], recent[1], 0.11, kernel="triton")
    assert torch.equal(again, first)  # every sum has a fixed order


def test_growth_by_32() -> None:
    table = atoms_of(4096, 4096, 128)
    codes = codes_of(table, 4200, 8, 8)
    parts = (codes.indices, codes.coefficients, codes.counts, codes.exponents)
    layer = CodedLayer.empty(table, 8, 8)
    first, steps = 3800, range(3800, 4200, 32)
    for begin, end in [(0, first), *((at, min(at + 32, 4200)) for at in steps)]:
        cut = [
            part.view(2, 4200, 8, *part.shape[1:])[:, begin:end].flatten(0, 2)
            for part in parts
            if part is not None
        ]
        layer.append(Codes(*cut))
    once = CodedLayer.empty(table, 8, 8)
    once.append(codes)
    query = drawn(32, 1, 128, dtype=torch.float16, seed=1)
    recent = drawn(8, 60, 128, dtype=torch.float16, seed=2)
    outs = [attend(query, each, recent, recent, 0.1, kernel="triton") for each in (layer, once)]
    assert torch.equal(*outs)


def test_scratch_of_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    from lexico_codec.kernels.attend import triton_attend

    table = atoms_of(1000, 1001, 128)
    layer = CodedLayer.empty(table, 2, 8)
    layer.append(codes_of(table, 5000, 2, 8))
    query = drawn(8, 1, 128, dtype=torch.float16, seed=1)
    recent = drawn(2, 60, 128, dtype=torch.float16, seed=2)
    expected = attend(query, layer, recent, recent, 0.1, kernel="triton")

    def poisoned(like: Tensor, *shape: int) -> Tensor:
        return torch.full(shape, torch.nan, device=like.device)

    monkeypatch.setattr(triton_attend, "_scratch", poisoned)
    assert torch.equal(expected, attend(query, layer, recent, recent, 0.1, kernel="triton"))


def test_a_graph_captures_it() -> None:
    table = atoms_of(4096, 4096, 128)
    layer = CodedLayer.empty(table, 8, 8)
    layer.append(codes_of(table, 6000, 8, 8))
    query = drawn(32, 1, 128, dtype=torch.float16, seed=1)
    recent = drawn(8, 60, 128, dtype=torch.float16, seed=2)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and makes the forms of the atoms
        attend(query, layer, recent, recent, 0.1, kernel="triton")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(query, layer, recent, recent, 0.1, kernel="triton")
    query.copy_(drawn(32, 1, 128, dtype=torch.float16, seed=5))
    graph.replay()
    expected = attend(query, layer, recent, recent, 0.1, kernel="triton")
    assert torch.equal(out, expected)
