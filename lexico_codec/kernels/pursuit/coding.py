"""Sparse coding of vectors over dictionaries: the functions that every codec calls.

`encode` picks atoms, `reconstruct` and `reconstruct_into` add them up again. Each takes tensors
on any device and hands them to the fastest kernel there: Triton on CUDA, the compiled library on
the CPU, and the plain PyTorch twin, oracle of both, anywhere else (see `dispatch`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lexico_codec.kernels import library
from lexico_codec.kernels.dispatch import Kernel, choose
from lexico_codec.kernels.memory import TableMemory
from lexico_codec.kernels.pursuit import compiled, naive
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.preparation import Preparation
from lexico_codec.limits import MAX_SPARSITY
from lexico_proto.errors import InternalError, InvalidInput, ShapeMismatch

Scoring = Literal["fp16", "bf16", "fp8"]
"""Type in which Triton scores atoms; coefficients come from float32 arithmetic all the same."""

_MAX_QUANTISED_ATOMS = 32768  # an index is an int16 there
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def encode(
    vectors: Tensor,
    atoms: Atoms | Tensor,
    sparsity: int,
    tolerance: float | None = None,
    *,
    preparation: Preparation | None = None,
    quantised: bool = False,
    scoring: Scoring = "fp16",
    kernel: Kernel | None = None,
) -> Codes:
    """Codes each vector as a sum of at most `sparsity` atoms (orthogonal matching pursuit).

    Args:
        vectors: `[B, m]` for one dictionary, `[tables, B, m]` or `[tables, tokens, heads, m]` for
            several, all coded in one launch; float16, bfloat16, float32 or float64, finite, any
            strides.
        atoms: the dictionaries, on the same device; a tensor `[N, m]` is one dictionary, which is
            checked and made ready in each call. float64 goes with float64 vectors alone.
        sparsity: most atoms a vector, 1..min(m, N, 255).
        tolerance: stop a vector once `||x - x̂|| <= tolerance * ||x||`, in [0, 1); None codes to
            `sparsity` atoms.
        preparation: what is done to the vectors first, or None; needs four dimensions.
        quantised: hand over codes as frames store them.
        scoring: see `Scoring`; the other kernels score in the vectors' own precision.
        kernel: a forced kernel, or None for the usual one.

    Returns:
        `Codes` of all vectors, tables one after another, on the device of `vectors`.

    Raises:
        ShapeMismatch: a shape, dtype or device that does not fit.
        NonFiniteCache: NaN, infinity or a norm that overflows among the vectors; quantised, also a
            coefficient beyond float32.
        InvalidInput: sparsity, tolerance, scoring or atoms out of range.
        ConfigurationError: a forced kernel that cannot serve.
    """
    if not isinstance(vectors, Tensor) or vectors.dtype not in _FLOATS:
        raise ShapeMismatch("vectors: must be a tensor of float16, bfloat16, float32 or float64")
    if vectors.layout != torch.strided:
        raise ShapeMismatch(f"vectors: must be dense, not {vectors.layout}")
    if isinstance(atoms, Tensor) and vectors.shape[-1:] != atoms.shape[1:]:
        raise ShapeMismatch(f"atoms: {list(atoms.shape)} do not fit vectors {list(vectors.shape)}")
    table = atoms if isinstance(atoms, Atoms) else Atoms.of(atoms)
    grouped = _grouped(vectors, table)
    _check_encode(grouped, table, sparsity, tolerance, scoring, quantised)
    if preparation is not None:
        if vectors.ndim != 4:
            raise ShapeMismatch("preparation: needs vectors [tables, tokens, heads, m]")
        preparation.check(*(grouped.shape[i] for i in (0, 2, 3)))
    chosen = choose("encode", vectors.device, vectors.dtype, table.m, sparsity, kernel)
    if chosen == "triton":
        from lexico_codec.kernels.pursuit import triton_encode

        return triton_encode.encode(
            grouped, table, sparsity, tolerance, preparation, quantised, scoring
        )
    if preparation is not None:
        grouped = preparation.apply(grouped)
    rows = grouped.reshape(table.tables, -1, table.m).to(table.stack.dtype)
    if chosen == "compiled":
        codes = _encode_compiled(rows.contiguous(), table, sparsity, tolerance)
    else:
        codes = _join(
            [
                naive.omp(part, table.dictionary(t), sparsity, tolerance)
                for t, part in enumerate(rows)
            ]
        )
    return codes.quantised() if quantised else codes


def reconstruct(codes: Codes, atoms: Atoms | Tensor, *, kernel: Kernel | None = None) -> Tensor:
    """The vectors `[B, m]` that the codes stand for, in the dtype of `atoms`.

    Args:
        codes: as `encode` gives them, plain or quantised, any strides; B is a multiple of the
            tables. A coefficient that is not finite makes its vector so.
        atoms: the dictionaries, on the same device.
        kernel: a forced kernel, or None for the usual one.

    Raises:
        ShapeMismatch: codes and atoms whose shapes, dtypes or devices do not fit.
        InvalidInput: an index outside its dictionary, or atoms as `Atoms.of` refuses them.
        ConfigurationError: a forced kernel that cannot serve.
    """
    table = atoms if isinstance(atoms, Atoms) else Atoms.of(atoms)
    rows = _check_codes(codes, table)
    dtype, width = table.stack.dtype, codes.indices.shape[1]
    if rows == 0 or width == 0:
        return table.stack.new_zeros(rows * table.tables, table.m)
    chosen = choose("reconstruct", codes.indices.device, dtype, table.m, width, kernel)
    if chosen == "triton":
        out = table.stack.new_empty(table.tables, rows, 1, table.m)
        _reconstruct_triton(codes, table, TableMemory.over(out), None)
        return out.view(-1, table.m)
    return _dense(codes, table, chosen)


def reconstruct_into(
    codes: Codes,
    atoms: Atoms,
    memory: TableMemory,
    *,
    preparation: Preparation | None = None,
    kernel: Kernel | None = None,
) -> None:
    """Writes the vectors that the codes stand for into the caller's memory.

    Values beyond the range of the memory's dtype become its largest.

    Args:
        codes: of `memory.tables * memory.tokens * memory.heads` vectors.
        atoms: the dictionaries, one a table of the memory, on the same device.
        memory: where the vectors go, on the same device.
        preparation: what was done to the vectors before they were coded: it is undone.
        kernel: a forced kernel, or None for the usual one.

    Raises:
        ShapeMismatch: codes, atoms, memory and preparation that do not fit one another.
        InvalidInput: an index outside its dictionary.
        ConfigurationError: a forced kernel that cannot serve.
    """
    rows = _check_codes(codes, atoms)
    shape = (memory.tables, memory.tokens, memory.heads, memory.m)
    if (shape[0], shape[1] * shape[2], shape[3]) != (atoms.tables, rows, atoms.m):
        raise ShapeMismatch(
            f"memory: {shape[0]} tables of {shape[1] * shape[2]} vectors of {shape[3]}, the codes "
            f"are {atoms.tables} of {rows} of {atoms.m}"
        )
    if memory.device != codes.indices.device:
        raise ShapeMismatch("memory: must be on the device of the codes")
    if preparation is not None:
        preparation.check(memory.tables, memory.heads, memory.m)
    width = codes.indices.shape[1]
    device, dtype = codes.indices.device, atoms.stack.dtype
    with torch.no_grad():
        if rows == 0 or width == 0:
            dense = atoms.stack.new_zeros(shape)
        else:
            chosen = choose("reconstruct", device, dtype, atoms.m, width, kernel)
            if chosen == "triton":
                _reconstruct_triton(codes, atoms, memory, preparation)
                return
            if chosen == "compiled" and preparation is None and _restores(codes, memory):
                _restore_compiled(codes, atoms, memory)
                return
            dense = _dense(codes, atoms, chosen).view(shape)
        memory.fill(preparation.undo(dense) if preparation is not None else dense)


def _dense(codes: Codes, atoms: Atoms, chosen: Kernel) -> Tensor:
    """`[B, m]` of codes with at least one row and one column."""
    plain = codes.plain()
    if chosen == "compiled":
        return _reconstruct_compiled(plain, atoms)
    _check_indices(plain.indices, atoms)
    columns = (plain.indices, plain.coefficients, plain.counts)
    tables = zip(*(column.chunk(atoms.tables) for column in columns), strict=True)
    return torch.cat(
        [naive.reconstruct(Codes(*part), atoms.dictionary(t)) for t, part in enumerate(tables)]
    )


def _encode_compiled(rows: Tensor, atoms: Atoms, sparsity: int, tolerance: float | None) -> Codes:
    stack, starts = _contiguous(atoms)
    packed = atoms.form(("int8", atoms.starts), lambda: compiled.pack(stack, starts))
    return Codes(*compiled.omp(rows, stack, starts, packed, sparsity, tolerance))


def _reconstruct_compiled(codes: Codes, atoms: Atoms) -> Tensor:
    stack, starts = _contiguous(atoms)
    dense = compiled.reconstruct(
        codes.indices.contiguous(),
        codes.coefficients.contiguous(),
        codes.counts.int().contiguous(),
        stack,
        starts,
    )
    return dense.view(-1, atoms.m)


def _restores(codes: Codes, memory: TableMemory) -> bool:
    """Whether the compiled library writes the memory itself."""
    return codes.exponents is not None and library.reaches(memory)


def _restore_compiled(codes: Codes, atoms: Atoms, memory: TableMemory) -> None:
    if codes.exponents is None:
        raise InternalError("plain codes where quantised ones were expected")
    stack, starts = _contiguous(atoms)
    columns = (codes.indices, codes.coefficients, codes.exponents, codes.counts)
    indices, bits, exponents, counts = (column.contiguous() for column in columns)
    compiled.restore((indices, bits, exponents, counts), stack, starts, memory)


def _contiguous(atoms: Atoms) -> tuple[Tensor, tuple[int, ...]]:
    """The rows of these dictionaries alone, and their starts from 0."""
    first, end = atoms.starts[0], atoms.starts[-1]
    return atoms.stack[first:end], tuple(start - first for start in atoms.starts)


def _reconstruct_triton(
    codes: Codes, atoms: Atoms, memory: TableMemory, preparation: Preparation | None
) -> None:
    from lexico_codec.kernels.pursuit import triton_decode

    _check_indices(codes.indices, atoms)
    if triton_decode.reaches(memory):
        triton_decode.reconstruct(codes, atoms, memory, preparation)
        return
    shape = (memory.tables, memory.tokens, memory.heads, memory.m)
    scratch = TableMemory.over(torch.empty(shape, dtype=memory.dtype, device=memory.device))
    triton_decode.reconstruct(codes, atoms, scratch, preparation)
    memory.write(scratch.read())


def _grouped(vectors: Tensor, atoms: Atoms) -> Tensor:
    """Vectors as `[tables, tokens, heads, m]`, a view."""
    if vectors.ndim == 2 and atoms.tables == 1:
        grouped = vectors[None, :, None]
    elif vectors.ndim == 3:
        grouped = vectors[:, :, None]
    elif vectors.ndim == 4:
        grouped = vectors
    else:
        raise ShapeMismatch(
            f"vectors: must be [B, m], [tables, B, m] or [tables, tokens, heads, m] for "
            f"{atoms.tables} dictionaries, not {list(vectors.shape)}"
        )
    if len(grouped) != atoms.tables or grouped.shape[3] != atoms.m:
        raise ShapeMismatch(
            f"atoms: {atoms.tables} dictionaries of {atoms.m} components do not fit vectors "
            f"{list(vectors.shape)}"
        )
    return grouped


def _check_encode(
    vectors: Tensor,
    atoms: Atoms,
    sparsity: int,
    tolerance: float | None,
    scoring: Scoring,
    quantised: bool,
) -> None:
    if (vectors.dtype == torch.float64) != (atoms.stack.dtype == torch.float64):
        raise ShapeMismatch("atoms: float64 goes with float64 vectors, float32 with all others")
    if atoms.stack.device != vectors.device:
        raise ShapeMismatch("atoms: must be on the device of vectors")
    most = min(MAX_SPARSITY, atoms.m, *atoms.sizes)
    if isinstance(sparsity, bool) or not isinstance(sparsity, int) or not 1 <= sparsity <= most:
        raise InvalidInput(f"sparsity: must be 1..{most} here, not {sparsity}")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise InvalidInput(f"tolerance: must be in [0, 1), not {tolerance}")
    if scoring not in ("fp16", "bf16", "fp8"):
        raise InvalidInput(f"scoring: must be fp16, bf16 or fp8, not {scoring!r}")
    if quantised and max(atoms.sizes) > _MAX_QUANTISED_ATOMS:
        raise InvalidInput(f"atoms: quantised codes count at most {_MAX_QUANTISED_ATOMS} atoms")


def _check_codes(codes: Codes, atoms: Atoms) -> int:
    """Vectors a table, once codes and atoms have proved to fit."""
    indices, coefficients, counts = codes.indices, codes.coefficients, codes.counts
    exponents = codes.exponents
    if indices.ndim != 2 or indices.shape != coefficients.shape:
        raise ShapeMismatch("codes: indices and coefficients must be [B, s]")
    if counts.shape != indices.shape[:1] or len(indices) % atoms.tables:
        raise ShapeMismatch(
            f"codes: {len(indices)} vectors do not fit {atoms.tables} tables and counts "
            f"{list(counts.shape)}"
        )
    columns = (indices, coefficients, counts) + (() if exponents is None else (exponents,))
    if any(column.device != atoms.stack.device for column in columns):
        raise ShapeMismatch("codes: must be on the device of the atoms")
    if counts.dtype.is_floating_point or counts.dtype == torch.bool:
        raise ShapeMismatch(f"counts: must be integers, not {counts.dtype}")
    wide = atoms.stack.dtype == torch.float64
    if exponents is None:
        if indices.dtype != torch.int32:
            raise ShapeMismatch(f"indices: must be int32, not {indices.dtype}")
        if coefficients.dtype != atoms.stack.dtype:
            raise ShapeMismatch(
                f"coefficients: {coefficients.dtype}, atoms are {atoms.stack.dtype}"
            )
    elif (indices.dtype, coefficients.dtype) != (torch.int16, torch.uint8) or wide:
        raise ShapeMismatch("codes: quantised are int16 and uint8, over float32 atoms")
    elif exponents.dtype != torch.int8 or exponents.shape != counts.shape:
        raise ShapeMismatch(f"exponents: must be int8 {list(counts.shape)}")
    return len(indices) // atoms.tables


def _check_indices(indices: Tensor, atoms: Atoms) -> None:
    """For kernels that would read whatever lies there; the compiled one checks for itself."""
    low, high = torch.aminmax(indices.reshape(atoms.tables, -1), dim=1)
    sizes = atoms.starts_tensor().diff()
    if bool(((low < 0) | (high >= sizes)).any()):  # one wait for a device
        raise InvalidInput(f"indices: outside the dictionaries of {atoms.sizes} atoms")


def _join(parts: list[Codes]) -> Codes:
    columns = zip(*((part.indices, part.coefficients, part.counts) for part in parts), strict=True)
    indices, coefficients, counts = (torch.cat(column) for column in columns)
    return Codes(indices, coefficients, counts)
