"""Orthogonal matching pursuit on the CPU, compiled: the C++ of `native/` through ctypes.

`hatch_build.py` compiles the library where there is a C++ compiler; without it `available` is False
and the twin in `naive` serves. The library picks an instruction set when it is loaded; the variable
LEXICO_CPU_ISA (amx, vnni, avx2 or generic) forces one, for tests.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from torch import Tensor

from lexico_proto.errors import (
    ConfigurationError,
    InternalError,
    InvalidInput,
    NonFiniteCache,
    ShapeMismatch,
)

LIBRARY: Final = Path(__file__).parent / "native" / "liblexico.so"
ISA_VARIABLE: Final = "LEXICO_CPU_ISA"
MAX_DIM: Final = 65536
"""Components of a vector that `omp` takes, so that sums of int8 products fit an int32."""

_ABI: Final = 6  # of `lexico_abi`: a library of another version is not used
_ISAS: Final = {"amx": 3, "vnni": 2, "avx2": 1, "generic": 0}  # best first
_KINDS: Final = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_NO_MEMORY, _NON_FINITE, _BAD_INDEX = 1, 2, 3  # Status of native/lexico.h


def available() -> bool:
    """Whether the compiled library is there and loads."""
    return _library() is not None


def isa() -> str:
    """The instruction set that `omp` runs on: amx, vnni, avx2 or generic.

    Raises:
        ConfigurationError: LEXICO_CPU_ISA names none, or one that this machine lacks.
    """
    forced = os.environ.get(ISA_VARIABLE)
    if not forced:
        return supported()[0]
    if forced not in _ISAS:
        raise ConfigurationError(f"{ISA_VARIABLE}: {forced!r} is none of {', '.join(_ISAS)}")
    if forced not in supported():
        raise ConfigurationError(f"{ISA_VARIABLE}: this machine has no {forced}")
    return forced


def isa_number() -> int:
    """What the library calls `isa()`; raises what that raises."""
    return _ISAS[isa()]


@cache
def supported() -> tuple[str, ...]:
    """The instruction sets that this machine can run, best first."""
    library = loaded()
    return tuple(name for name, number in _ISAS.items() if library.lexico_supported(number))


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
    library = loaded()
    _check(table, torch.float32, (starts[-1] if starts else 0, -1), "table")
    offsets = _offsets(starts)
    tables, m = len(starts) - 1, table.shape[1]
    if m > MAX_DIM:
        raise ShapeMismatch(f"table: at most {MAX_DIM} components, not {m}")
    packed = torch.empty(_packed_bytes(m, starts), dtype=torch.uint8, device="cpu")
    status = library.lexico_pack(
        torch.get_num_threads(), table.data_ptr(), m, tables, offsets, packed.data_ptr()
    )
    if status == _NON_FINITE:
        raise InvalidInput("table: every atom must be finite")
    if status:
        fail(status)
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
    library = loaded()
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
    status = library.lexico_omp(
        isa_number(),
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
        fail(status)
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
    library = loaded()
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
    status = library.lexico_reconstruct(
        isa_number(),
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
        fail(status)
    return out


def restores(dtype: torch.dtype) -> bool:
    """Whether the library reads and writes that type."""
    return dtype in _KINDS


def kind_number(dtype: torch.dtype) -> int:
    """What the library calls a type that it `restores`."""
    return _KINDS[dtype]


def restore(
    codes: tuple[Tensor, Tensor, Tensor, Tensor],
    table: Tensor,
    starts: tuple[int, ...],
    parts: Sequence[Tensor],
    tokens: int,
    block_table: Tensor | None = None,
) -> None:
    """Writes the vectors that quantised codes stand for into the caller's memory, in one pass.

    Values beyond the range of the parts' dtype become its largest. Where an error is raised parts
    of the memory may have been written.

    Args:
        codes: indices `[T * R, s]` int16, E4M3 bits `[T * R, s]` uint8, exponents `[T * R]` int8
            and counts `[T * R]` uint8, R being tokens * heads.
        table, starts: see `pack`.
        parts: one a table, of equal shapes and strides: `[tokens, heads, m]`, or with a block table
            `[blocks, block_tokens, heads, m]`; float32, float16 or bfloat16, components side by
            side.
        tokens: how many to write.
        block_table: the block of each run of `block_tokens` tokens, int64, in range; or None.

    Raises:
        ShapeMismatch: a dtype, layout or length that does not fit.
        InvalidInput: an index outside its dictionary, or a count over s.
    """
    library = loaded()
    indices, bits, exponents, counts = codes
    tables, first = len(starts) - 1, parts[0]
    heads, m = first.shape[-2:]
    rows, sparsity = tables * tokens * heads, indices.shape[1]
    _check(table, torch.float32, (starts[-1], m), "table")
    _check(indices, torch.int16, (rows, -1), "indices")
    _check(bits, torch.uint8, (rows, sparsity), "coefficients")
    _check(exponents, torch.int8, (rows,), "exponents")
    _check(counts, torch.uint8, (rows,), "counts")
    if len(parts) != tables or first.dtype not in _KINDS or (first.stride(-1) != 1 and m > 1):
        raise ShapeMismatch("parts: one a table, of a half type or float32, components together")
    if block_table is not None:
        _check(block_table, torch.int64, (-1,), "block_table")
    status = library.lexico_restore(
        isa_number(),
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
        _KINDS[first.dtype],
        (ctypes.c_void_p * tables)(*[part.data_ptr() for part in parts]),
        None if block_table is None else block_table.data_ptr(),
        1 if block_table is None else first.shape[1],
        first.stride(0),
        first.stride(-3),
        first.stride(-2),
    )
    if status == _BAD_INDEX:
        raise InvalidInput("codes: an index outside its dictionary, or a count over s")
    if status:
        fail(status)


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
        if library.lexico_abi() != _ABI:
            return None
    except (OSError, AttributeError):  # not built here, built for another machine, or not ours
        return None
    number, size, address = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    real, offsets, pointer = ctypes.c_float, ctypes.POINTER(size), ctypes.POINTER(address)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "lexico_supported": (number, [number]),
        "lexico_packed_bytes": (size, [size, size, offsets]),
        "lexico_pack": (number, [size, address, size, size, offsets, address]),
        "lexico_omp": (
            number,
            [number, size, address, address, offsets, address, *[size] * 4, real, *[address] * 3],
        ),
        "lexico_reconstruct": (
            number,
            [number, size, *[address] * 4, offsets, *[size] * 4, address],
        ),
        "lexico_restore": (
            number,
            [number, size, *[address] * 5, offsets, *[size] * 5, number, address, address]
            + [size] * 4,
        ),
        "lexico_entropy_encode": (
            number,
            [size, *[address] * 3, size, size, address, address, size, pointer, offsets],
        ),
        "lexico_entropy_take": (None, [address, address]),
        "lexico_entropy_drop": (None, [address]),
        "lexico_entropy_decode": (
            number,
            [number, size, *[address] * 4, size, size, *[address] * 3, size, number, address],
        ),
        "lexico_choose_levels": (
            number,
            [size, *[address] * 3, size, size, *[address] * 3, size, real, address],
        ),
        "lexico_gather": (number, [number, size, offsets, number, *[address] * 5]),
        "lexico_scatter": (number, [number, size, offsets, number, *[address] * 5, number]),
        "lexico_arrange": (
            number,
            [
                *(number, *[size] * 4, address, address),  # out of what
                *(*[size] * 3, address, address, real),  # atoms
                *(address, number, address),  # where to
            ],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def loaded() -> ctypes.CDLL:
    """The library.

    Raises:
        InternalError: it is not there.
    """
    library = _library()
    if library is None:
        raise InternalError(f"{LIBRARY.name}: not built; run `python hatch_build.py`")
    return library


def _packed_bytes(m: int, starts: tuple[int, ...]) -> int:
    return int(loaded().lexico_packed_bytes(m, len(starts) - 1, _offsets(starts)))


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


def fail(status: int) -> NoReturn:
    """Raises what a status means that no input explains."""
    if status == _NO_MEMORY:
        raise MemoryError("liblexico: no memory for scratch")
    raise InternalError(f"liblexico: status {status}")
