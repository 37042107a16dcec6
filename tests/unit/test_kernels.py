"""Stacked dictionaries, preparation, targets, and the choice of a kernel."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexico_codec.geometry import Pairing, Rope
from lexico_codec.kernels import dispatch, library
from lexico_codec.kernels.dispatch import KERNEL_VARIABLE
from lexico_codec.kernels.memory import TableMemory
from lexico_codec.kernels.pursuit import naive
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import encode, reconstruct, reconstruct_into
from lexico_codec.kernels.pursuit.preparation import Preparation
from lexico_codec.rope import unrotate
from lexico_proto.errors import ConfigurationError, InvalidInput, NonFiniteCache, ShapeMismatch


def unit_rows(rows: int, m: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, m, generator=generator), dim=1)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stacked(sizes: tuple[int, ...], m: int) -> Atoms:
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return Atoms.of(unit_rows(starts[-1], m), starts)


@pytest.mark.parametrize("quantised", [False, True])
def test_a_grouped_call_is_a_call_for_each_dictionary(quantised: bool) -> None:
    atoms, vectors = stacked((40, 77, 33), 24), drawn(3, 7, 2, 24)
    codes = encode(vectors, atoms, 5, kernel="naive", quantised=quantised)
    single = [
        naive.omp(vectors[t].reshape(-1, 24), atoms.dictionary(t), 5) for t in range(atoms.tables)
    ]
    if quantised:
        single = [part.quantised() for part in single]
    assert torch.equal(codes.indices, torch.cat([part.indices for part in single]))
    assert torch.equal(codes.coefficients, torch.cat([part.coefficients for part in single]))
    assert torch.equal(codes.counts, torch.cat([part.counts for part in single]))
    dense = reconstruct(codes, atoms, kernel="naive")
    for t, part in enumerate(dense.chunk(3)):
        alone = naive.reconstruct(single[t].plain(), atoms.dictionary(t))
        torch.testing.assert_close(part, alone, atol=1e-6, rtol=1e-6)


def test_narrowed_dictionaries_count_from_their_own_first_row() -> None:
    atoms, vectors = stacked((40, 77, 33), 24), drawn(2, 9, 24)
    narrowed = atoms.narrow(1, 2)
    assert (narrowed.tables, narrowed.sizes, narrowed.starts) == (2, (77, 33), (40, 117, 150))
    codes = encode(vectors, narrowed, 4)
    again = encode(vectors, Atoms.of(atoms.stack[40:].clone(), (0, 77, 110)), 4)
    assert torch.equal(codes.indices, again.indices)
    torch.testing.assert_close(reconstruct(codes, narrowed), reconstruct(again, narrowed))


def test_forms_are_made_once_and_shared_by_narrowed_dictionaries() -> None:
    atoms, made = stacked((4, 4), 8), []

    def make() -> Tensor:
        made.append(1)
        return atoms.stack.half()

    assert atoms.form("half", make) is atoms.narrow(1, 1).form("half", make)
    assert made == [1]
    assert atoms.narrow(1, 1).starts_tensor().tolist() == [4, 8]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_vectors_are_coded_as_their_float32_values(dtype: torch.dtype) -> None:
    atoms, vectors = stacked((50,), 16), drawn(20, 16).to(dtype)
    codes, wide = encode(vectors, atoms, 3), encode(vectors.float(), atoms, 3)
    assert torch.equal(codes.indices, wide.indices)
    assert torch.equal(codes.coefficients, wide.coefficients)


@pytest.mark.parametrize("kernel", ["naive", None])
def test_any_strides_are_taken(kernel: dispatch.Kernel | None) -> None:
    atoms, vectors = stacked((50, 60), 16), drawn(2, 3, 10, 16)
    turned = vectors.transpose(1, 2)  # a Hugging Face cache: heads before tokens
    codes = encode(turned, atoms, 3, kernel=kernel)
    assert torch.equal(codes.indices, encode(turned.contiguous(), atoms, 3, kernel=kernel).indices)


ROPES = [("half", 8), ("interleaved", 8), ("half", 16), ("interleaved", 4)]


@pytest.mark.parametrize(("pairing", "rotary"), ROPES)
def test_preparation_is_unrotation_mean_and_scale(pairing: Pairing, rotary: int) -> None:
    rope = Rope(tuple(100.0**-i for i in range(rotary // 2)), pairing, 1.25)
    mean, scale = drawn(2, 3, 16, seed=3), drawn(2, 3, seed=4).abs() + 0.5
    preparation = Preparation(rope, (True, False), 700, mean, scale)
    vectors = drawn(2, 6, 3, 16, seed=5)
    prepared = preparation.apply(vectors)
    keys = unrotate(vectors[0], torch.arange(700, 706), rope)
    torch.testing.assert_close(prepared[0], (keys - mean[0]) * scale[0, :, None])
    torch.testing.assert_close(prepared[1], (vectors[1] - mean[1]) * scale[1, :, None])
    torch.testing.assert_close(preparation.undo(prepared), vectors, atol=1e-5, rtol=1e-5)


def test_prepared_vectors_come_back() -> None:
    rope = Rope(tuple(100.0**-i for i in range(8)))
    preparation = Preparation(rope, (True, False), 9, drawn(2, 3, 16), drawn(2, 3).abs() + 0.1)
    atoms, vectors = stacked((64, 64), 16), drawn(2, 6, 3, 16)
    codes = encode(vectors, atoms, 16, preparation=preparation)
    out = torch.full((2, 6, 3, 16), float("nan"))
    reconstruct_into(codes, atoms, TableMemory.of(list(out), 6), preparation=preparation)
    torch.testing.assert_close(out, vectors, atol=1e-3, rtol=1e-3)


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(0, 23),
    block_tokens=st.integers(1, 8),
    heads=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_paged_targets_hold_what_plain_ones_hold(
    tokens: int, block_tokens: int, heads: int, seed: int
) -> None:
    vectors = drawn(2, tokens, heads, 5, seed=seed)
    blocks = -(-tokens // block_tokens)
    order = torch.randperm(blocks + 3, generator=torch.Generator().manual_seed(seed))[:blocks]
    pools = [torch.full((blocks + 3, block_tokens, heads, 5), float("nan")) for _ in range(2)]
    TableMemory.of(pools, tokens, order).fill(vectors)
    for pool, expected in zip(pools, vectors, strict=True):
        assert torch.equal(pool[order].flatten(0, 1)[:tokens], expected)
        written = int((~pool.isnan()).sum())
        assert written == expected.numel(), "something else was written"


def test_a_target_keeps_values_within_its_dtype() -> None:
    part = torch.empty(1, 1, 2, dtype=torch.float16)
    TableMemory.of([part], 1).fill(torch.tensor([1e6, -1e6]).view(1, 1, 1, 2))
    assert part.flatten().tolist() == [65504.0, -65504.0]


POOL = torch.empty(4, 2, 1, 8)


@pytest.mark.parametrize(
    ("parts", "tokens", "table", "error", "named"),
    [
        ([], 1, None, ShapeMismatch, "parts"),
        ([POOL], 8, None, ShapeMismatch, "parts"),
        ([POOL[0]], 3, None, ShapeMismatch, "parts"),
        ([POOL[0], POOL[0].double()], 2, None, ShapeMismatch, "parts"),
        ([POOL[0].int()], 2, None, ShapeMismatch, "parts"),
        ([POOL], 5, torch.tensor([0, 1]), ShapeMismatch, "block_table"),
        ([POOL], 4, torch.tensor([0.0, 1.0]), ShapeMismatch, "block_table"),
        ([POOL], 4, torch.tensor([0, 4]), InvalidInput, "block_table"),
        ([POOL], 4, torch.tensor([-1, 0]), InvalidInput, "block_table"),
        ([POOL], 4, torch.tensor([1, 1]), InvalidInput, "block_table"),
    ],
)
def test_bad_targets_are_named(
    parts: list[Tensor], tokens: int, table: Tensor | None, error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        TableMemory.of(parts, tokens, table)


@pytest.mark.parametrize(
    ("starts", "named"),
    [((0,), "starts"), ((1, 9), "starts"), ((0, 4), "starts"), ((0, 9, 9), "1")],
)
def test_bad_starts_are_named(starts: tuple[int, ...], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        Atoms.of(unit_rows(9, 4), starts)


def test_bad_preparation_is_named() -> None:
    rope, x, atoms = Rope((1.0, 0.1)), drawn(2, 3, 1, 4), stacked((8, 8), 4)
    cases: list[tuple[Preparation, str]] = [
        (Preparation(rope), "turned"),
        (Preparation(Rope((1.0, 0.5, 0.1)), (True, False)), "rope"),
        (Preparation(first_position=-1), "first_position"),
        (Preparation(mean=torch.zeros(2, 4)), "mean"),
        (Preparation(mean=torch.full((2, 1, 4), float("nan"))), "mean"),
        (Preparation(scale=torch.ones(2, 2)), "scale"),
        (Preparation(scale=torch.zeros(2, 1)), "scale"),
    ]
    for preparation, named in cases:
        with pytest.raises((ShapeMismatch, InvalidInput), match=named):
            encode(x, atoms, 2, preparation=preparation)
    with pytest.raises(ShapeMismatch, match="preparation"):
        encode(x[:, :, 0], atoms, 2, preparation=Preparation())


X, ATOMS = drawn(6, 16), unit_rows(40, 16)
BAD_ENCODES: list[tuple[str, Any, Any, Any, type[Exception], str]] = [
    ("integers", X.int(), ATOMS, 4, ShapeMismatch, "vectors"),
    ("fp8", X.to(torch.float8_e4m3fn), ATOMS, 4, ShapeMismatch, "vectors"),
    ("sparse", X.to_sparse(), ATOMS, 4, ShapeMismatch, "vectors"),
    ("numpy", X.numpy(), ATOMS, 4, ShapeMismatch, "vectors"),
    ("one-vector", X[0], ATOMS, 4, ShapeMismatch, "vectors"),
    ("other-m", X[:, :8], ATOMS, 4, ShapeMismatch, "atoms"),
    ("atoms-1d", X, ATOMS[0], 4, ShapeMismatch, "atoms"),
    ("atoms-none", X, None, 4, ShapeMismatch, "atoms"),
    ("atoms-numpy", X, ATOMS.numpy(), 4, ShapeMismatch, "atoms"),
    ("atoms-sparse", X, ATOMS.to_sparse(), 4, ShapeMismatch, "atoms"),
    ("atoms-half", X, ATOMS.half(), 4, ShapeMismatch, "atoms"),
    ("atoms-wide", X, ATOMS.double(), 4, ShapeMismatch, "atoms"),
    ("vectors-wide", X.double(), ATOMS, 4, ShapeMismatch, "atoms"),
    ("no-atoms", X, ATOMS[:0], 1, InvalidInput, "atoms"),
    ("long-atoms", X, ATOMS * 1.1, 4, InvalidInput, "atoms"),
    ("nan-atoms", X, ATOMS * float("nan"), 4, InvalidInput, "atoms"),
    ("infinite-atoms", X, ATOMS / 0, 4, InvalidInput, "atoms"),
    ("s-over-m", X, ATOMS, 17, InvalidInput, "sparsity"),
    ("N-below-s", X, ATOMS[:3], 4, InvalidInput, "sparsity"),
    ("s-zero", X, ATOMS, 0, InvalidInput, "sparsity"),
    ("s-float", X, ATOMS, 4.0, InvalidInput, "sparsity"),
    ("nan", X * float("nan"), ATOMS, 4, NonFiniteCache, "vectors"),
    ("infinity", X / 0, ATOMS, 4, NonFiniteCache, "vectors"),
    ("half-infinity", (X * 1e6).half(), ATOMS, 4, NonFiniteCache, "vectors"),
    ("overflow", torch.full((1, 16), 3.4e38), ATOMS, 4, NonFiniteCache, "vectors"),
]
CPU_KERNELS: list[dispatch.Kernel] = ["naive", "compiled"] if library.available() else ["naive"]


@pytest.mark.parametrize("kernel", CPU_KERNELS)
@pytest.mark.parametrize(
    ("vectors", "atoms", "sparsity", "error", "named"),
    [case[1:] for case in BAD_ENCODES],
    ids=[case[0] for case in BAD_ENCODES],
)
def test_bad_vectors_atoms_and_sparsities_are_named(
    vectors: Any,
    atoms: Any,
    sparsity: Any,
    error: type[Exception],
    named: str,
    kernel: dispatch.Kernel,
) -> None:
    with pytest.raises(error, match=f"^{named}: "):
        encode(vectors, atoms, sparsity, kernel=kernel)


def test_wide_coefficients_beyond_float32_are_not_quantised() -> None:
    wide = X.double() * 1e39
    assert bool(encode(wide, ATOMS.double(), 4).coefficients.isfinite().all())
    with pytest.raises(NonFiniteCache, match=r"^coefficients: "):
        encode(wide, ATOMS.double(), 4, quantised=True)


PLAIN = naive.omp(X, ATOMS, 4)
STORED = PLAIN.quantised()
BAD_CODES: list[tuple[str, Codes, dict[str, Tensor], type[Exception], str]] = [
    ("wide-indices", PLAIN, {"indices": PLAIN.indices.long()}, ShapeMismatch, "indices"),
    ("float-indices", PLAIN, {"indices": PLAIN.indices.float()}, ShapeMismatch, "indices"),
    ("flat-indices", PLAIN, {"indices": PLAIN.indices[0]}, ShapeMismatch, "codes"),
    ("one-column", PLAIN, {"indices": PLAIN.indices[:, :1]}, ShapeMismatch, "codes"),
    ("wide", PLAIN, {"coefficients": PLAIN.coefficients.double()}, ShapeMismatch, "coefficients"),
    ("few-counts", PLAIN, {"counts": PLAIN.counts[1:]}, ShapeMismatch, "codes"),
    ("counts-2d", PLAIN, {"counts": PLAIN.counts[:, None]}, ShapeMismatch, "codes"),
    ("float-counts", PLAIN, {"counts": PLAIN.counts.float()}, ShapeMismatch, "counts"),
    ("elsewhere", PLAIN, {"counts": PLAIN.counts.to("meta")}, ShapeMismatch, "codes"),
    ("beyond", PLAIN, {"indices": PLAIN.indices + 40}, InvalidInput, "codes|indices"),
    ("negative", PLAIN, {"indices": PLAIN.indices - 40}, InvalidInput, "codes|indices"),
    ("half-stored", STORED, {"indices": PLAIN.indices}, ShapeMismatch, "codes"),
    ("few-exponents", STORED, {"exponents": drawn(5).char()}, ShapeMismatch, "exponents"),
    ("float-exponents", STORED, {"exponents": drawn(6)}, ShapeMismatch, "exponents"),
]


@pytest.mark.parametrize("kernel", CPU_KERNELS)
@pytest.mark.parametrize(
    ("codes", "changed", "error", "named"),
    [case[1:] for case in BAD_CODES],
    ids=[case[0] for case in BAD_CODES],
)
def test_bad_codes_are_named(
    codes: Codes,
    changed: dict[str, Tensor],
    error: type[Exception],
    named: str,
    kernel: dispatch.Kernel,
) -> None:
    with pytest.raises(error, match=f"^({named}): "):
        reconstruct(replace(codes, **changed), ATOMS, kernel=kernel)


@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_strided_codes_and_atoms_are_taken(kernel: dispatch.Kernel) -> None:
    expected = reconstruct(PLAIN, ATOMS, kernel=kernel)
    strided = Codes(
        PLAIN.indices.T.contiguous().T,
        PLAIN.coefficients.T.contiguous().T,
        PLAIN.counts.repeat_interleave(2)[::2],
    )
    assert torch.equal(reconstruct(strided, ATOMS.T.contiguous().T, kernel=kernel), expected)


@pytest.mark.parametrize("kernel", CPU_KERNELS)
@pytest.mark.parametrize("shape", [(2, 0, 16), (2, 5, 0, 16), (2, 0, 3, 16)])
def test_no_vectors_have_no_codes(shape: tuple[int, ...], kernel: dispatch.Kernel) -> None:
    atoms = stacked((40, 30), 16)
    for quantised in (False, True):
        codes = encode(torch.empty(shape), atoms, 4, quantised=quantised, kernel=kernel)
        assert (codes.indices.shape, codes.counts.shape) == ((0, 4), (0,))
        assert reconstruct(codes, atoms, kernel=kernel).shape == (0, 16)


def test_vectors_too_long_for_the_compiled_kernel_go_to_the_twin() -> None:
    m = library.MAX_DIM + 1
    chosen = dispatch.choose("encode", torch.device("cpu"), torch.float32, m, 1, None)
    assert chosen == "naive"


def test_bad_grouped_calls_are_named() -> None:
    x, atoms = drawn(2, 3, 1, 4), stacked((8, 8), 4)
    with pytest.raises(ShapeMismatch, match="2 dictionaries"):
        encode(x[:1], atoms, 2)
    with pytest.raises(ShapeMismatch, match="vectors"):
        encode(x[0, 0], atoms, 2)
    with pytest.raises(InvalidInput, match="scoring"):
        encode(x, atoms, 2, scoring="int8")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="sparsity"):
        encode(x, atoms, True)
    with pytest.raises(NonFiniteCache, match="vectors"):
        encode(x / 0, atoms, 2)
    codes = encode(x, atoms, 2)
    out = torch.empty(2, 4, 1, 4)
    with pytest.raises(ShapeMismatch, match="memory"):
        reconstruct_into(codes, atoms, TableMemory.of(list(out), 4))
    with pytest.raises(ShapeMismatch, match="memory: must be on the device"):
        reconstruct_into(codes, atoms, TableMemory.of(list(out[:, :3].to("meta")), 3))
    odd = Codes(codes.indices[:5], codes.coefficients[:5], codes.counts[:5])
    with pytest.raises(ShapeMismatch, match="5 vectors"):
        reconstruct(odd, atoms)
    beyond = Codes(codes.indices + 7, codes.coefficients, codes.counts)
    with pytest.raises(InvalidInput, match=r"index|indices"):
        reconstruct(beyond, atoms)


@pytest.mark.parametrize("forced", ["triton", "cuda", "compiled64"])
def test_a_forced_kernel_that_cannot_serve_is_refused(
    forced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    atoms, x = unit_rows(8, 4), drawn(3, 4)
    if forced == "compiled64":
        forced, atoms, x = "compiled", atoms.double(), x.double()
        atoms = torch.nn.functional.normalize(atoms, dim=1)
    monkeypatch.setenv(KERNEL_VARIABLE, forced)
    with pytest.raises(ConfigurationError, match=f"kernel '?{forced}"):
        encode(x, atoms, 2)


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._announce.cache_clear()
    atoms, x = unit_rows(8, 4), drawn(3, 4)
    with caplog.at_level(logging.INFO, logger="lexico_codec.kernels.dispatch"):
        for _ in range(3):
            encode(x, atoms, 2, kernel="naive")
            encode(x.double(), torch.nn.functional.normalize(atoms.double(), dim=1), 2)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "operation=encode device=cpu kernel=naive why=forced",
        "operation=encode device=cpu kernel=naive why=float64",
    ]
