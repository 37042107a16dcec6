"""Sums atoms on CUDA, in one launch for all tables, straight into the caller's memory.

How the work is cut, and why, is in README.md of this folder.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
from torch import Tensor

from lexico_codec.kernels.memory import TableMemory
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.preparation import Preparation
from lexico_codec.kernels.pursuit.triton_decode_kernel import RUNTIME, decode
from lexico_codec.kernels.variants import Variant

_L1_BYTES: Final = 256 << 10  # of an sm_90 or sm_100 multiprocessor, nearly all of it cache here
_RUN_BYTES: Final = 64  # of an atom that a load takes at least: it can have one line a cycle
_SECTOR_BYTES: Final = 32  # narrower reads fetch as much
_WARPS: Final = 32  # the whole multiprocessor is one program: its L1 holds one slice of one table
_THREAD_COMPONENTS: Final = 8  # of each half of a slice: 16 bytes of float16
_RAGGED_COMPONENTS: Final = 2  # where components are read one by one: an address each, in registers
_WORDS: Final = 1  # 2 takes a tenth fewer instructions, but spills in some variants
_UNROLL: Final = 4  # an int64 holds four indices, an int32 four coefficients
_STREAM_ROWS: Final = 64  # fewer are not worth a program of their own


@dataclass(frozen=True, slots=True)
class _Cut:
    """How a launch is cut into programs."""

    components: int  # W
    rows: int  # BR
    slices: int

    @classmethod
    def of(cls, m: int, pairs: int, itemsize: int, most_atoms: int) -> _Cut:
        """The widest slices of which a dictionary's fit the L1; `pairs` of pairing half alone."""
        fits = _L1_BYTES // (2 * itemsize * most_atoms)
        width = max(_RUN_BYTES // itemsize, 1 << max(0, fits.bit_length() - 1))
        if pairs:  # a slice half full costs as much as a full one
            width = min(width, max(_SECTOR_BYTES // itemsize, pairs & -pairs))
        width = min(width, max(2, triton.next_power_of_2(-(-m // 2))))
        ragged = m % 8 != 0 or pairs % 8 != 0
        each = _RAGGED_COMPONENTS if ragged else _THREAD_COMPONENTS
        rows = _WARPS * 32 * min(each, width) // width
        return cls(width, rows, -(-pairs // width) + -(-(m - 2 * pairs) // (2 * width)))


def reaches(memory: TableMemory) -> bool:
    """Whether the kernel writes a memory itself: it takes one set of strides."""
    strides = memory.addresses().strides
    return bool((strides == strides[0]).all())


def reconstruct(
    codes: Codes, atoms: Atoms, memory: TableMemory, preparation: Preparation | None
) -> None:
    """Writes the vectors that the codes stand for into a memory; shapes and indices fit.

    Args:
        codes: plain (int32, float32, int32) or quantised, on the device of all else.
        atoms: float32.
        memory: where the vectors go, clamped to the range of its dtype; one that it `reaches`.
        preparation: what is undone, or None.
    """
    total = memory.tables * memory.tokens * memory.heads
    if total == 0:
        return
    first, device = _first(memory), memory.device
    pointers, strides = memory.addresses()
    table = _table(atoms)
    rope = None if preparation is None else preparation.rope
    cos = sin = mean = scale = None
    if preparation is not None:
        if rope is not None:
            cos, sin = (angle.contiguous() for angle in preparation.angles(memory.tokens, device))
        mean, scale = _float32(preparation.mean, device), _float32(preparation.scale, device)
    pairs = 0 if rope is None else rope.rotary_dim // 2
    half = rope is not None and rope.pairing == "half"
    cut = _Cut.of(atoms.m, pairs if half else 0, table.element_size(), max(atoms.sizes))
    streams = min(-(-total // _STREAM_ROWS), max(1, _multiprocessors(device) // cut.slices))
    share = -(-total // streams)
    offsets = tuple(((pointers - pointers[0]) // memory.dtype.itemsize).tolist())
    turned = (False,) * memory.tables
    if preparation is not None and rope is not None:
        turned = preparation.turned
    indices, coefficients, packed = _words(codes)
    own: list[int] = strides[0].tolist()
    stride_block, stride_token, stride_head, stride_component = own
    with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
        decode[(cut.slices * -(-total // share),)](
            indices,
            coefficients,
            codes.counts.contiguous(),
            None if codes.exponents is None else codes.exponents.contiguous(),
            table,
            _described(atoms.starts[:-1], offsets, turned, device),
            first,
            memory.block_table,
            cos,
            sin,
            mean,
            scale,
            1.0 if rope is None else rope.scale,
            total,
            share,
            memory.tokens,
            memory.tables,
            memory.first_slot,
            stride_block,
            stride_token,
            stride_head,
            stride_component,
            M=atoms.m,
            S=codes.indices.shape[1],
            HEADS=memory.heads,
            BLOCK_TOKENS=memory.block_tokens,
            PAIRS=pairs,
            HALF=half,
            PACKED=packed,
            MOST=min(torch.finfo(first.dtype).max, torch.finfo(torch.float32).max),
            ALIGN=math.gcd(16 // first.element_size(), *offsets, *own[:-1]),
            UNIT=stride_component == 1,
            W=cut.components,
            BR=cut.rows,
            WORDS=_WORDS,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )


def variants(architecture: int) -> list[Variant]:
    """What the compile report builds: the usual shapes, and each branch of the kernel once.

    The same for every architecture.
    """
    return [
        _variant("m128 N4096 s8 strided fp16", m=128, unit=False),
        _variant("m128 N4096 s8 half fp16", m=128, pairs=64, mean=True),
        _variant("m128 N4096 s16 half bf16 paged", m=128, s=16, pairs=64, out="bf16", paged=True),
        _variant("m128 N4096 s8 fp16", m=128),
        _variant("m128 N1024 s8 half fp16", m=128, most_atoms=1024, pairs=64),
        _variant("m64 N1024 s8 half fp16", m=64, most_atoms=1024, pairs=32, heads=3),
        _variant("m128 N4096 s32 interleaved fp16", m=128, s=32, pairs=32, half=False, mean=True),
        _variant("m80 N4096 s8 half partial fp16", m=80, pairs=16, heads=32),
        _variant(
            "m100 N1000 s6 half ragged fp32", m=100, most_atoms=1000, s=6, pairs=21, out="fp32"
        ),
        _variant("m128 N4096 s8 plain fp32", m=128, table="fp32", quantised=False, out="fp32"),
    ]


def _variant(
    name: str,
    *,
    m: int,
    most_atoms: int = 4096,
    s: int = 8,
    heads: int = 8,
    pairs: int = 0,
    half: bool = True,
    mean: bool = False,
    paged: bool = False,
    quantised: bool = True,
    unit: bool = True,
    table: str = "fp16",
    out: str = "fp16",
) -> Variant:
    packed = quantised and s % _UNROLL == 0
    size = {"fp16": 2, "bf16": 2, "fp32": 4}
    cut = _Cut.of(m, pairs if half else 0, size[table], most_atoms)
    signature = {
        "indices": "*i64" if packed else "*i16" if quantised else "*i32",
        "coefficients": "*i32" if packed else "*u8" if quantised else "*fp32",
        "counts": "*u8" if quantised else "*i32",
        "exponents": "*i8" if quantised else "constexpr",
        "atoms": f"*{table}",
        "tables": "*i64",
        "out": f"*{out}",
        "block_table": "*i32" if paged else "constexpr",
        "cos": "*fp32" if pairs else "constexpr",
        "sin": "*fp32" if pairs else "constexpr",
        "mean": "*fp32" if mean else "constexpr",
        "scale": "*fp32" if mean else "constexpr",
        "rope_scale": "fp32",
        **dict.fromkeys(RUNTIME[1:], "i32"),
    }
    constexprs: dict[str, Any] = {
        "M": m,
        "S": s,
        "HEADS": heads,
        "BLOCK_TOKENS": 16 if paged else 1,
        "PAIRS": pairs,
        "HALF": half and pairs > 0,
        "PACKED": packed,
        "MOST": {"fp16": 65504.0, "bf16": 3.3895313892515355e38, "fp32": 3.4028234663852886e38}[
            out
        ],
        "ALIGN": math.gcd(16 // size[out], m),
        "UNIT": unit,
        "W": cut.components,
        "BR": cut.rows,
        "WORDS": _WORDS,
    }
    absent = {key: None for key, kind in signature.items() if kind == "constexpr"}
    signature |= dict.fromkeys(constexprs, "constexpr")
    return Variant(f"decode {name}", decode, signature, absent | constexprs, _WARPS, 3)


def _first(memory: TableMemory) -> Tensor:
    """What begins where the kernel counts from: the first table's pool, or its first token."""
    held = memory.held[0] if isinstance(memory.held, tuple) else memory.held
    if memory.block_table is None:
        return held.narrow(-3, memory.first_slot, memory.tokens)
    return held


def _table(atoms: Atoms) -> Tensor:
    """The atoms in float16 where that is exact: half the traffic."""

    def make() -> Tensor | None:
        rounded = atoms.stack.half()
        return rounded if torch.equal(rounded.float(), atoms.stack) else None

    rounded = atoms.form("float16", make)
    return atoms.stack if rounded is None else rounded


def _words(codes: Codes) -> tuple[Tensor, Tensor, bool]:
    """Indices and coefficients, four to a word where quantised codes allow it."""
    indices, coefficients = codes.indices.contiguous(), codes.coefficients.contiguous()
    whole = indices.shape[1] > 0 and indices.shape[1] % _UNROLL == 0
    if codes.exponents is None or not whole:
        return indices, coefficients, False
    if indices.data_ptr() % 8:
        indices = indices.clone()
    if coefficients.data_ptr() % 4:
        coefficients = coefficients.clone()
    return indices.flatten().view(torch.int64), coefficients.flatten().view(torch.int32), True


def _float32(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device, torch.float32).contiguous()


@functools.lru_cache(maxsize=256)
def _described(
    starts: tuple[int, ...],
    offsets: tuple[int, ...],
    turned: tuple[bool, ...],
    device: torch.device,
) -> Tensor:
    """`tables` of the kernel; the copy is waited for, so that any stream may use it."""
    return torch.tensor([*starts, *offsets, *turned], dtype=torch.int64, device=device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4  # the interpreter
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
