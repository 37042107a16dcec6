"""Attention over sparse codes: the twin against float64, the Triton kernels against the twin."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lexico_codec.kernels import dispatch
from lexico_codec.kernels.attend import long as long_attend
from lexico_codec.kernels.attend.coded import attend
from lexico_codec.kernels.attend.layer import CodedLayer
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.quantise import from_e4m3
from lexico_proto.errors import ConfigurationError, InvalidInput, ShapeMismatch

# dtype of query and exact tokens: (atol, rtol) of outputs around 1; the last two are one rounding
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (2e-5, 2e-5),
    torch.float16: (2e-5, 1e-3),
    torch.bfloat16: (2e-5, 8e-3),
}
INTERPRETED = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1 before triton"
)


def atoms_of(keys: int, values: int, m: int, half: bool = True) -> Atoms:
    generator = torch.Generator().manual_seed(keys + values + m)
    drawn = torch.randn(keys + values, m, generator=generator)
    stack = torch.nn.functional.normalize(drawn, dim=1)
    return Atoms.of(stack.half().float() if half else stack, (0, keys, keys + values))


def codes_of(atoms: Atoms, tokens: int, heads: int, sparsity: int, seed: int = 1) -> Codes:
    """Ragged rows, counts 0..sparsity; the last atom of each dictionary is in most rows."""
    generator = torch.Generator().manual_seed(seed)
    rows = 2 * tokens * heads
    sizes = torch.tensor(atoms.sizes).repeat_interleave(tokens * heads)[:, None]
    indices = (torch.rand(rows, sparsity, generator=generator) * sizes).int()
    hot = torch.rand(rows, generator=generator) < 0.8
    indices[:, 0] = torch.where(hot, sizes[:, 0] - 1, indices[:, 0])
    counts = torch.randint(0, sparsity + 1, (rows,), generator=generator)
    counted = torch.arange(sparsity) < counts[:, None]
    norms = 10 ** (2 * torch.rand(rows, 1, generator=generator) - 1)
    coefficients = norms * torch.randn(rows, sparsity, generator=generator)
    return Codes(indices * counted, coefficients * counted, counts.int()).quantised()


def rows_of(codes: Codes, tokens: int, first: int, last: int) -> Codes:
    """The codes of tokens `first` to `last` alone."""

    def cut(part: Tensor) -> Tensor:
        shape = (2, tokens, -1, *part.shape[1:])
        return part.view(shape)[:, first:last].flatten(0, 2)

    assert codes.exponents is not None
    parts = (codes.indices, codes.coefficients, codes.counts, codes.exponents)
    return Codes(*(cut(part) for part in parts))


def dense_of(codes: Codes, atoms: Atoms, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values `[heads, tokens, m]`, float64."""
    assert codes.exponents is not None
    coefficients = from_e4m3(codes.coefficients, codes.exponents).double()
    tables = zip(codes.indices.long().chunk(2), coefficients.chunk(2), (0, 1), strict=True)
    keys, values = (
        (part[..., None] * atoms.dictionary(table).double()[picked])
        .sum(1)
        .view(-1, heads, atoms.m)
        .transpose(0, 1)
        for picked, part, table in tables
    )
    return keys, values


def exact_attention(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Dense attention in float64 of the newest `q_len` tokens."""
    group, (q_len, length) = query.shape[0] // len(keys), (query.shape[1], keys.shape[1])
    keys, values = (part.double().repeat_interleave(group, 0) for part in (keys, values))
    scores = query.double() @ keys.transpose(1, 2) * scale
    hidden = torch.arange(length) > length - q_len + torch.arange(q_len)[:, None]
    return scores.masked_fill(hidden, -torch.inf).softmax(2) @ values


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def filled(
    atoms: Atoms, codes: Codes, heads: int, sparsity: int, steps: list[int], **sizes: int
) -> CodedLayer:
    """A layer filled by appends of so many tokens each."""
    layer = CodedLayer.empty(atoms, heads, sparsity, **sizes)
    tokens = len(codes.indices) // 2 // heads
    bounds = [0]
    while bounds[-1] < tokens:
        bounds.append(min(tokens, bounds[-1] + steps[(len(bounds) - 1) % len(steps)]))
    for first, last in pairwise(bounds):
        layer.append(rows_of(codes, tokens, first, last))
    return layer


def assert_near(out: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    atol, rtol = TOLERANCES[dtype]
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected.double(), atol=atol, rtol=rtol)


SHAPES = [
    # keys, values, m, heads, group, q_len, tokens, sparsity, exact, chunk, steps
    pytest.param(100, 131, 64, 3, 1, 1, 777, 5, 10, 256, [777], id="m64-g1-q1-777"),
    pytest.param(63, 257, 80, 1, 4, 3, 1, 4, 3, 4096, [1], id="m80-g4-q3-one"),
    pytest.param(300, 97, 128, 2, 3, 1, 513, 3, 150, 100, [1, 33, 100, 7], id="m128-g3-q1-513"),
    pytest.param(64, 64, 96, 2, 8, 3, 512, 16, 4, 512, [511, 1], id="m96-g8-q3-512"),
    pytest.param(64, 64, 64, 1, 2, 8, 4200, 1, 8, 4096, [4095, 2, 103], id="m64-g2-q8-4200"),
]
_NAMES = "keys, values, m, heads, group, q_len, tokens, sparsity, exact, chunk, steps"


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize(_NAMES, SHAPES)
def test_twin_is_dense_attention(
    keys: int, values: int, m: int, heads: int, group: int, q_len: int, tokens: int,
    sparsity: int, exact: int, chunk: int, steps: list[int], dtype: torch.dtype,
) -> None:  # fmt: skip
    atoms = atoms_of(keys, values, m)
    codes = codes_of(atoms, tokens, heads, sparsity)
    layer = filled(atoms, codes, heads, sparsity, steps, chunk=chunk)
    query = drawn(heads * group, q_len, m, dtype=dtype)
    recent = drawn(2, heads, exact, m, dtype=dtype, seed=4)
    coded = dense_of(codes, atoms, heads)
    whole = [torch.cat([old, new.double()], 1) for old, new in zip(coded, recent, strict=True)]
    expected = exact_attention(query, whole[0], whole[1], 0.11)
    out = attend(query, layer, recent[0], recent[1], 0.11, kernel="naive")
    assert_near(out, expected, dtype)
    mask = torch.ones(q_len, whole[0].shape[1], dtype=torch.bool).tril(whole[0].shape[1] - q_len)
    sdpa = torch.nn.functional.scaled_dot_product_attention(
        query[None].double(), whole[0][None], whole[1][None], mask, scale=0.11, enable_gqa=True
    )
    assert_near(out, sdpa[0], dtype)


@pytest.mark.parametrize(_NAMES, SHAPES)
def test_layer_holds_what_was_appended(
    keys: int, values: int, m: int, heads: int, group: int, q_len: int, tokens: int,
    sparsity: int, exact: int, chunk: int, steps: list[int],
) -> None:  # fmt: skip
    atoms = atoms_of(keys, values, m)
    codes = codes_of(atoms, tokens, heads, sparsity)
    layer = filled(atoms, codes, heads, sparsity + 1, steps, chunk=chunk)  # narrower rows do
    assert layer.tokens == tokens
    for dense, expected in zip(
        layer.dense(torch.float64), dense_of(codes, atoms, heads), strict=True
    ):
        torch.testing.assert_close(dense, expected, atol=1e-12, rtol=1e-12)


def test_order_of_appends_leaves_no_trace() -> None:
    atoms, tokens = atoms_of(100, 90, 64), 700
    codes = codes_of(atoms, tokens, 2, 6)
    once = filled(atoms, codes, 2, 6, [tokens], chunk=300)
    often = filled(atoms, codes, 2, 6, [1, 32, 5], chunk=300)
    for chunk in range(3):
        for one, other in zip(once.value_entries(chunk), often.value_entries(chunk), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(once.runs[:, :3], often.runs[:, :3])
    query, recent = drawn(4, 1, 64), drawn(2, 9, 64)
    assert torch.equal(
        attend(query, once, recent, recent, 0.1), attend(query, often, recent, recent, 0.1)
    )


def test_bytes_are_near_those_of_frames() -> None:
    atoms, tokens, heads, sparsity = atoms_of(1024, 1024, 64), 8192, 2, 8
    layer = CodedLayer.empty(atoms, heads, sparsity)
    assert layer.held_bytes == 0
    layer.append(codes_of(atoms, tokens, heads, sparsity))
    frame = 2 * (3 * sparsity + 2)
    assert layer.held_bytes / (tokens * heads) < 1.02 * frame
    layer.append(codes_of(atoms, 32, heads, sparsity))
    assert layer.held_bytes / (tokens * heads) < 1.3 * frame  # room for a quarter more


def test_codes_of_any_strides() -> None:
    atoms = atoms_of(100, 90, 64)
    codes = codes_of(atoms, 30, 2, 6)
    assert codes.exponents is not None
    strided = replace(
        codes,
        indices=codes.indices.t().contiguous().t(),
        coefficients=codes.coefficients.t().contiguous().t(),
        exponents=torch.stack([codes.exponents] * 2, 1)[:, 0],
    )
    theirs, ours = filled(atoms, codes, 2, 6, [30]), CodedLayer.empty(atoms, 2, 6)
    ours.append(strided)
    for one, other in zip(ours.dense(torch.float32), theirs.dense(torch.float32), strict=True):
        assert torch.equal(one, other)


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._announce.cache_clear()
    layer, recent = CodedLayer.empty(atoms_of(70, 70, 64), 1, 4), drawn(1, 2, 64)
    with caplog.at_level(logging.INFO, logger="lexico_codec"):
        for _ in range(2):
            attend(recent, layer, recent, recent, 1.0)
    assert [record.getMessage() for record in caplog.records] == [
        "operation=attend device=cpu kernel=naive why=attention has no compiled kernel"
    ]
    attend(recent, layer, recent, recent, 1.0, kernel="compiled")  # as documented, the twin


def test_nothing_to_append() -> None:
    atoms = atoms_of(70, 70, 64)
    layer = CodedLayer.empty(atoms, 2, 4)
    layer.append(codes_of(atoms, 0, 2, 4))
    assert layer.tokens == 0
    query, recent = drawn(4, 1, 64), drawn(2, 5, 64)
    expected = exact_attention(query, recent, recent, 0.2)
    assert_near(attend(query, layer, recent, recent, 0.2), expected, torch.float32)
    assert [part.shape for part in layer.dense(torch.float16)] == [(2, 0, 64)] * 2


@pytest.mark.parametrize("tokens", [0, 1, 300])
def test_long_queries(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_attend, "BLOCK", 50)
    monkeypatch.setattr(long_attend, "_SCORES", 5000)  # 50 rows at a time
    atoms = atoms_of(100, 110, 64)
    codes = codes_of(atoms, tokens, 2, 5)
    layer = filled(atoms, codes, 2, 5, [77], chunk=128)
    query, recent = drawn(6, 63, 64), drawn(2, 2, 100, 64, seed=4)
    coded = dense_of(codes, atoms, 2)
    whole = [torch.cat([old, new.double()], 1) for old, new in zip(coded, recent, strict=True)]
    expected = exact_attention(query, whole[0], whole[1], 0.11)
    out = attend(query, layer, recent[0], recent[1], 0.11)
    assert_near(out, expected, torch.float32)


def test_long_queries_of_their_own_tokens_alone() -> None:
    layer = CodedLayer.empty(atoms_of(70, 70, 64), 1, 4)
    query, recent = drawn(1, 40, 64), drawn(1, 40, 64, seed=4)
    expected = exact_attention(query, recent, recent, 1.0)
    assert_near(attend(query, layer, recent, recent, 1.0), expected, torch.float32)


def triton_attention(
    monkeypatch: pytest.MonkeyPatch, query: Tensor, layer: CodedLayer, exact: Tensor
) -> Tensor:
    """By the Triton kernels, on scratch memory of NaN."""
    pytest.importorskip("triton")
    from lexico_codec.kernels.attend import triton_attend

    def poisoned(like: Tensor, *shape: int) -> Tensor:
        return torch.full(shape, torch.nan, device=like.device)

    monkeypatch.setattr(triton_attend, "_scratch", poisoned)
    return attend(query, layer, exact[0], exact[1], 0.11, kernel="triton")


INTERPRETER_SHAPES = [
    # keys, values, m, heads, group, q_len, tokens, sparsity, exact, chunk, steps
    pytest.param(63, 101, 64, 2, 1, 1, 300, 3, 40, 128, [1, 33, 100, 7], id="m64-g1-q1-300"),
    pytest.param(101, 63, 80, 1, 3, 1, 129, 5, 3, 64, [129], id="m80-g3-q1-129"),
    pytest.param(65, 65, 128, 1, 4, 1, 1, 4, 1, 4096, [1], id="m128-g4-q1-one"),
    pytest.param(33, 40, 128, 1, 4, 1, 515, 2, 70, 600, [515], id="m128-g4-q1-515"),
    pytest.param(100, 70, 64, 1, 8, 3, 40, 4, 35, 30, [39, 1], id="m64-g8-q3-40"),
    pytest.param(70, 70, 64, 3, 3, 3, 0, 4, 33, 64, [1], id="m64-g3-q3-none"),
]


@INTERPRETED
@pytest.mark.parametrize(_NAMES, INTERPRETER_SHAPES)
def test_triton_is_the_twin(
    keys: int, values: int, m: int, heads: int, group: int, q_len: int, tokens: int,
    sparsity: int, exact: int, chunk: int, steps: list[int], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    atoms = atoms_of(keys, values, m)
    codes = codes_of(atoms, tokens, heads, sparsity)
    layer = filled(atoms, codes, heads, sparsity + 1, steps, chunk=chunk, lanes=32)
    query = drawn(heads * group, q_len, m)
    recent = drawn(2, heads, exact, m, seed=4)
    expected = attend(query, layer, recent[0], recent[1], 0.11, kernel="naive")
    out = triton_attention(monkeypatch, query, layer, recent)
    assert_near(out, expected, torch.float32)


@INTERPRETED
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_triton_dtypes_and_strides(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = atoms_of(65, 63, 64, half=dtype is torch.float16)
    layer = filled(atoms, codes_of(atoms, 50, 2, 3), 2, 3, [50], lanes=32)
    query = drawn(2, 4, 64, dtype=dtype).transpose(0, 1)  # [4, 2, 64]
    recent = drawn(2, 37, 2, 64, dtype=dtype, seed=4).transpose(1, 2)  # by token in memory
    expected = attend(query, layer, recent[0], recent[1], 0.11, kernel="naive")
    out = triton_attention(monkeypatch, query, layer, recent)
    assert_near(out, expected, dtype)


@INTERPRETED
@pytest.mark.parametrize("sparsity", [1, 4])
def test_triton_with_hardly_any_entries(sparsity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of nothing, an atom that fills blocks, a chunk whose last run ends before its end."""
    atoms = atoms_of(64, 66, 64)
    codes = codes_of(atoms, 600, 1, sparsity)
    token = torch.arange(1200) % 600
    codes.indices.fill_(65 - 2)
    codes.coefficients[(token > 290) | (token % 7 == 0)] = 0  # the last chunk has no entry
    layer = filled(atoms, codes, 1, sparsity, [600], chunk=300, lanes=32)
    query, recent = drawn(2, 1, 64), drawn(2, 1, 3, 64, seed=4)
    expected = attend(query, layer, recent[0], recent[1], 0.11, kernel="naive")
    out = triton_attention(monkeypatch, query, layer, recent)
    assert_near(out, expected, torch.float32)


def test_refusals() -> None:
    atoms = atoms_of(70, 80, 64)
    layer = CodedLayer.empty(atoms, 2, 4)
    good = codes_of(atoms, 3, 2, 4)
    plain = codes_of(atoms, 3, 2, 4).plain()
    for bad, error, word in (
        (plain, ShapeMismatch, "quantised"),
        (codes_of(atoms, 3, 2, 5), ShapeMismatch, "rows of 5"),
        (codes_of(atoms, 3, 1, 4), ShapeMismatch, "6 vectors"),
        (replace(good, indices=good.indices + 70), InvalidInput, "indices"),
        (replace(good, indices=good.indices - 71), InvalidInput, "indices"),
        (replace(good, coefficients=good.coefficients[:, :3]), ShapeMismatch, "coefficients"),
        (good.to("meta"), ShapeMismatch, "device"),
    ):
        with pytest.raises(error, match=word):
            layer.append(bad)
    assert layer.tokens == 0
    for bad_atoms in (atoms.narrow(0, 1), Atoms.of(atoms.stack.double(), atoms.starts)):
        with pytest.raises(InvalidInput, match="atoms"):
            CodedLayer.empty(bad_atoms, 2, 4)
    with pytest.raises(InvalidInput, match="sparsity"):
        CodedLayer.empty(atoms, 2, 0)
    query, recent = drawn(4, 2, 64), drawn(2, 5, 64)
    for name, arguments in (
        ("query", (drawn(3, 2, 64), recent, recent)),
        ("query", (drawn(4, 2, 32), recent, recent)),
        ("query", (drawn(4, 0, 64), recent, recent)),
        ("exact_keys", (query, drawn(4, 5, 64), recent)),
        ("exact_keys", (query, recent[:, :1], recent[:, :1])),
        ("exact_values", (query, recent, recent[:, :4])),
        ("exact_keys", (query.half(), recent, recent)),
        ("exact_keys", (query.to("meta"), recent, recent)),
    ):
        with pytest.raises(ShapeMismatch, match=name):
            attend(arguments[0], layer, arguments[1], arguments[2], 0.1)
    with pytest.raises(ConfigurationError, match="float64"):
        attend(query.double(), layer, recent.double(), recent.double(), 0.1, kernel="triton")


@INTERPRETED
def test_the_scan_is_associative() -> None:
    """The interpreter scans from the left; a GPU does not."""
    pytest.importorskip("triton")
    from lexico_codec.kernels.attend import triton_attend_kernel as kernels

    generator = torch.Generator().manual_seed(0)
    parts = torch.randint(-9, 10, (3, 4, 1000), generator=generator)
    parts[:, 0::2].clamp_(0, 1)  # keep and bare
    a, b, c = (tuple(part) for part in parts)
    combine = kernels._add_close.fn
    left = combine(*combine(*a, *b), *c)
    right = combine(*a, *combine(*b, *c))
    assert all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


@INTERPRETED
def test_variants_name_every_argument() -> None:
    pytest.importorskip("triton")
    from lexico_codec.kernels.attend import triton_attend

    names = [variant.name for variant in triton_attend.variants(90)]
    assert len(names) == len(set(names))
    for variant in triton_attend.variants(90):
        constants = {name for name, kind in variant.signature.items() if kind == "constexpr"}
        assert constants == set(variant.constexprs)
