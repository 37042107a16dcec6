"""Numbers of any width as one run of bits, and back; whole arrays at a time.

Bit b of a run is bit b % 8 of byte b // 8, and a number's least bit comes first. The bits after the
last number, up to a whole byte, are zero.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

MAX_WIDTH: Final = 32
"""Bits of one number."""

Numbers = npt.NDArray[np.uint64]
Widths = npt.NDArray[np.int64]


def packed_bytes(bits: int) -> int:
    """Whole bytes of a run of so many bits."""
    return (bits + 7) // 8


def pack(numbers: Numbers, widths: Widths) -> bytes:
    """The numbers one after another.

    Args:
        numbers: `[n]`, each below `2^width`.
        widths: `[n]`, 0..32.
    """
    ends = np.cumsum(widths)
    bits = int(ends[-1]) if len(ends) else 0
    starts = ends - widths
    shifted = numbers << (starts & 31).astype(np.uint64)  # 63 bits at most
    words, at = bits // 32 + 2, starts >> 5
    # Numbers never overlap, so that sums are ors; below 2^32 each, they are exact in a double.
    total = np.bincount(at, (shifted & np.uint64(0xFFFFFFFF)).astype(np.float64), words)
    total += np.bincount(at + 1, (shifted >> np.uint64(32)).astype(np.float64), words)
    return total.astype("<u4").tobytes()[: packed_bytes(bits)]


def unpack(run: memoryview, widths: Widths) -> Numbers:
    """The numbers of a run that `pack` made, `[n]`; those of width 0 are 0.

    Args:
        run: at least as many bytes as the widths add up to; what follows is not looked at.
        widths: `[n]`, 0..32.
    """
    if not len(widths):
        return np.zeros(0, np.uint64)
    ends = np.cumsum(widths)
    starts = ends - widths
    size = packed_bytes(int(ends[-1]))
    room = np.zeros(size + 8, np.uint8)  # so that eight bytes can be read at every start
    room[:size] = np.frombuffer(run, np.uint8, size)
    windows = np.ndarray((size + 1,), "<u8", room.data, strides=(1,))
    shifted = windows[starts >> 3] >> (starts & 7).astype(np.uint64)
    masks = (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)
    numbers: Numbers = shifted & masks
    return numbers


def padding_is_zero(run: memoryview, bits: int) -> bool:
    """Whether the bits after the last number, in its last byte, are zero."""
    return bits % 8 == 0 or run[bits // 8] >> (bits % 8) == 0
