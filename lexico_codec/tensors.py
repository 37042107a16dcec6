"""Tensors as bytes and bytes as tensors, without copies."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lexico_proto.errors import ShapeMismatch

FLOAT8: Final = (torch.float8_e4m3fn, torch.float8_e5m2)
"""Element types of one byte. Torch hardly computes with them: `WIDE` has all of their values."""
WIDE: Final = torch.float16


def bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's elements as flat bytes: a view where it is contiguous and on the CPU, else a
    copy.
    """
    whole = tensor.detach().to("cpu").contiguous()
    flat = whole.as_strided((whole.numel(),), (1,))  # none or one element may have any strides
    return flat.view(torch.uint8).numpy().data


def tensor_from(
    data: bytes | bytearray | memoryview, dtype: torch.dtype, shape: tuple[int, ...]
) -> Tensor:
    """A tensor over `data`, read-only by convention.

    Args:
        data: exactly the bytes of the shape.
        dtype: element type.
        shape: dimensions.

    Raises:
        ShapeMismatch: `data` has another length.
    """
    needed = math.prod(shape) * dtype.itemsize
    view = memoryview(data).cast("B")
    if len(view) != needed:
        raise ShapeMismatch(f"{len(view)} bytes for a tensor {shape} of {dtype}: needs {needed}")
    if needed == 0:
        return torch.empty(shape, dtype=dtype)
    flat = torch.from_numpy(np.asarray(_Shared(view)))
    if flat.data_ptr() % dtype.itemsize == 0:
        return flat.view(dtype).reshape(shape)
    return flat.clone().view(dtype).reshape(shape)


class _Shared:
    """Bytes as an array that claims to be writable.

    torch warns of every read-only buffer, once a call; silencing that is not safe among threads.
    Nothing here writes.
    """

    def __init__(self, view: memoryview) -> None:
        self._array = np.frombuffer(view, np.uint8)  # keeps the memory alive
        interface = dict(self._array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite.

    A sum in the tensor's own dtype shows both at the speed of memory; where the sum itself
    overflows, or there is none (8 bits), the bits of every element are looked at.
    """
    if tensor.dtype not in FLOAT8 and bool(torch.isfinite(tensor.sum())):
        return True
    bits, exponent = _EXPONENTS[tensor.dtype]
    return not bool(((tensor.view(bits) & exponent) == exponent).any())


_EXPONENTS: Final = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float8_e4m3fn: (torch.uint8, 0x7F),
    torch.float8_e5m2: (torch.uint8, 0x7C),
}
"""dtype → integers of its width, and the bits that are all set in NaN and infinity: those of the
exponent, and of e4m3fn, which has no infinity and one NaN, the mantissa's too."""
