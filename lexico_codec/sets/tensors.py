"""Tensors of an artefact that need not be trusted, read one by one."""

from __future__ import annotations

import math
from typing import Any, Final, NoReturn

import torch
from torch import Tensor

from lexico_proto.errors import InvalidInput

View = dict[str, Any]
"""A tensor of the artefact: its dtype, shape and bytes, as safetensors names them."""

_DTYPES: Final = {
    "F16": torch.float16,
    "F32": torch.float32,
    "I8": torch.int8,
    "I32": torch.int32,
}


def read_tensor(name: str, view: View, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of exactly that type and shape, all its numbers finite: a copy of its own.

    Raises:
        InvalidInput: naming the tensor.
    """
    if view["dtype"] != dtype or tuple(view["shape"]) != shape:
        refuse(f"{name} must be {dtype} {list(shape)}")
    data = bytearray(view["data"])
    if 0 in shape and not data:
        return torch.empty(shape, dtype=_DTYPES[dtype])
    if not data or len(data) != math.prod(shape) * _DTYPES[dtype].itemsize:
        refuse(f"{name} must be {dtype} {list(shape)}")
    tensor = torch.frombuffer(data, dtype=_DTYPES[dtype]).reshape(shape)
    if not bool(tensor.isfinite().all()):
        refuse(f"{name} has a number that is not finite")
    return tensor


def refuse(why: str) -> NoReturn:
    """Raises the error of every artefact that is not as it must be."""
    raise InvalidInput(f"dictionary set: {why}")
