"""Orthogonal matching pursuit on the CPU, compiled: `native/omp.cpp` through ctypes."""

from __future__ import annotations

import ctypes
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lexico_codec.kernels import library
from lexico_codec.kernels.memory import TableMemory
from lexico_proto.errors import InvalidInput, NonFiniteCache, ShapeMismatch

_NON_FINITE, _BAD_INDEX = 2, 3  # Status of native/lexico.h


def pack(table: Tensor, starts: tuple[int, ...]) -> Tensor:
    """Dictionaries in int8, as `omp` scores them: made once, kept by the caller.

    Args:
        table: `[sum N, m]` float32, T dictionaries under one another. starts: T + 1 row numbers;
        dictionary t is `table[starts[t] : starts[t + 1]]`.

    Returns:
        uint8 `[bytes]`, about a quarter of the table; its layout is private to the library.

    Raises:
        ShapeMismatch: a dtype, layout or length that does not fit.
        InvalidInput: an atom that is not finite.
    """
    native = library.loaded()
    _check(table, torch.float32, (starts[-1] if starts else 0, -1), "table")
    offsets = _offsets(starts)
    tables, m = len(starts) - 1, table.shape[1]
    if m > library.MAX_DIM:
        raise ShapeMismatch(f"table: at most {library.MAX_DIM} components, not {m}")
    packed = torch.empty(_packed_bytes(m, starts), dtype=torch.uint8, device="cpu")
    status = native.lexico_pack(
        torch.get_num_threads(), table.data_ptr(), m, tables, offsets, packed.data_ptr()
    )
    if status == _NON_FINITE:
        raise InvalidInput("table: every atom must be finite")
    if status:
        library.fail(status)
    return packed


def omp(
    vectors: Tensor,
    table: Tensor,
    starts: tuple[int, ...],
    packed: Tensor,
    sparsity: int,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Orthogonal matching pursuit of T tables of vectors, each against its own dictionary.

    The rules are those of `naive.omp`, whose docstring holds here too; equal scores resolve to the
    lowest index. A row's codes depend on the row and its dictionary alone, to the last bit.

    Args:
        vectors: `[T, R, m]` float32. table, starts: see `pack`, atoms of unit norm. packed: what
        `pack` gave for them. sparsity: 1..min(m, least N, 255). tolerance: in [0, 1), or None.

    Returns:
        indices `[T * R, s]` int32, coefficients `[T * R, s]` float32, counts `[T * R]` int32.

    Raises:
        ShapeMismatch: a dtype, layout or length that does not fit.
        InvalidInput: sparsity or tolerance out of range.
        NonFiniteCache: NaN, infinity or a norm that overflows among the vectors.
        ConfigurationError: see `isa`.
    """
    native = library.loaded()
    offsets = _offsets(starts)
    tables = len(starts) - 1
    _check(vectors, torch.float32, (tables, -1, -1), "vectors")
    _, rows, m = vectors.shape
    _check(table, torch.float32, (starts[-1], m), "table")
    _check(packed, torch.uint8, (_packed_bytes(m, starts),), "packed")
    least = min((end - start for start, end in pairwise(starts)), default=255)
    if not 1 <= sparsity <= min(m, least, 255):
        raise InvalidInput(f"sparsity: must be 1..{min(m, least, 255)} here, not {sparsity}")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise InvalidInput(f"tolerance: must be in [0, 1), not {tolerance}")
    on: Any = {"device": "cpu"}
    indices = torch.empty(tables * rows, sparsity, dtype=torch.int32, **on)
    coefficients = torch.empty(tables * rows, sparsity, dtype=torch.float32, **on)
    counts = torch.empty(tables * rows, dtype=torch.int32, **on)
    status = native.lexico_omp(
        library.isa_number(),
        torch.get_num_threads(),
        vectors.data_ptr(),
        table.data_ptr(),
        offsets,
        packed.data_ptr(),
        tables,
        rows,
        m,
        sparsity,
        tolerance or 0.0,
        indices.data_ptr(),
        coefficients.data_ptr(),
        counts.data_ptr(),
    )
    if status == _NON_FINITE:
        raise NonFiniteCache("vectors: NaN, infinity or a norm that overflows")
    if status:
        library.fail(status)
    return indices, coefficients, counts


def reconstruct(
    indices: Tensor, coefficients: Tensor, counts: Tensor, table: Tensor, starts: tuple[int, ...]
) -> Tensor:
    """The vectors `[T, R, m]` float32 that codes stand for: `x̂ = Σ coefficient · atom`.

    Args:
        indices: `[T * R, s]` int32. coefficients: `[T * R, s]` float32. counts: `[T * R]` int32;
        what lies past a count is not read. table, starts: see `pack`.

    Raises:
        ShapeMismatch: a dtype, layout or length that does not fit.
        InvalidInput: an index outside its dictionary, or a count outside 0..s.
    """
    native = library.loaded()
    offsets = _offsets(starts)
    tables = len(starts) - 1
    _check(table, torch.float32, (starts[-1], -1), "table")
    _check(indices, torch.int32, (-1, -1), "indices")
    vectors, sparsity = indices.shape
    if vectors % max(tables, 1) or (vectors and not tables):
        raise ShapeMismatch(f"indices: {vectors} vectors do not divide among {tables} dictionaries")
    _check(coefficients, torch.float32, (vectors, sparsity), "coefficients")
    _check(counts, torch.int32, (vectors,), "counts")
    rows, m = vectors // max(tables, 1), table.shape[1]
    out = torch.empty(tables, rows, m, dtype=torch.float32, device="cpu")
    status = native.lexico_reconstruct(
        library.isa_number(),
        torch.get_num_threads(),
        indices.data_ptr(),
        coefficients.data_ptr(),
        counts.data_ptr(),
        table.data_ptr(),
        offsets,
        tables,
        rows,
        m,
        sparsity,
        out.data_ptr(),
    )
    if status == _BAD_INDEX:
        raise InvalidInput("codes: an index outside its dictionary, or a count outside 0..s")
    if status:
        library.fail(status)
    return out


def restore(
    codes: tuple[Tensor, Tensor, Tensor, Tensor],
    table: Tensor,
    starts: tuple[int, ...],
    memory: TableMemory,
) -> None:
    """Writes the vectors that quantised codes stand for into the caller's memory, in one pass.

    Values beyond the range of the memory's dtype become its largest. Where an error is raised parts
    of the memory may have been written.

    Args:
        codes: indices `[T * R, s]` int16, E4M3 bits `[T * R, s]` uint8, exponents `[T * R]` int8
            and counts `[T * R]` uint8, R being tokens * heads.
        table, starts: see `pack`.
        memory: T tables, which the library `reaches`.

    Raises:
        ShapeMismatch: a dtype, layout or length that does not fit.
        InvalidInput: an index outside its dictionary, or a count over s.
    """
    native = library.loaded()
    indices, bits, exponents, counts = codes
    tables, tokens, heads, m = len(starts) - 1, memory.tokens, memory.heads, memory.m
    rows, sparsity = tables * tokens * heads, indices.shape[1]
    _check(table, torch.float32, (starts[-1], m), "table")
    _check(indices, torch.int16, (rows, -1), "indices")
    _check(bits, torch.uint8, (rows, sparsity), "coefficients")
    _check(exponents, torch.int8, (rows,), "exponents")
    _check(counts, torch.uint8, (rows,), "counts")
    if memory.tables != tables or not library.reaches(memory):
        raise ShapeMismatch("memory: one table a dictionary, of a half type or float32")
    reached = library.Reached.of(memory)
    status = native.lexico_restore(
        library.isa_number(),
        torch.get_num_threads(),
        indices.data_ptr(),
        bits.data_ptr(),
        exponents.data_ptr(),
        counts.data_ptr(),
        table.data_ptr(),
        _offsets(starts),
        tables,
        tokens,
        heads,
        m,
        sparsity,
        library.dtype_number(memory.dtype),
        *reached.arguments(),
        memory.block_tokens,
        memory.first_slot,
    )
    if status == _BAD_INDEX:
        raise InvalidInput("codes: an index outside its dictionary, or a count over s")
    if status:
        library.fail(status)


def _packed_bytes(m: int, starts: tuple[int, ...]) -> int:
    return int(library.loaded().lexico_packed_bytes(m, len(starts) - 1, _offsets(starts)))


def _offsets(starts: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    if not starts or starts[0] != 0:
        raise ShapeMismatch("starts: must begin with 0")
    if any(not 1 <= end - start <= 65536 for start, end in pairwise(starts)):
        raise ShapeMismatch("starts: every dictionary has 1..65536 atoms")
    return (ctypes.c_int64 * len(starts))(*starts)


def _check(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> None:
    """Raises ShapeMismatch unless the library may read the tensor; -1 fits any length."""
    if tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ShapeMismatch(f"{name}: must be {dtype}, contiguous and on the CPU")
    fits = tensor.ndim == len(shape) and all(
        wanted in (-1, length) for wanted, length in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise ShapeMismatch(f"{name}: must be {list(shape)}, not {list(tensor.shape)}")
