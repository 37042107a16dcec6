"""Layer groups to code."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lexico_codec.geometry import DTYPES

FAR: Final = 1000
"""A first token with no sinks after it."""

Shape = tuple[int, int, int, int]
"""Layers, KV heads, head_dim, tokens."""


def group_of(shape: Shape, dtype: str = "float16", seed: int = 0) -> Tensor:
    """Random keys and values, `[layers, 2, tokens, heads, dim]`, on the scale of a model's."""
    layers, heads, dim, tokens = shape
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(layers, 2, tokens, heads, dim, generator=generator)
    return (values * torch.tensor([4.0, 1.0])[:, None, None, None]).to(DTYPES[dtype])


def bits(tensor: Tensor) -> Tensor:
    """Elements as integers: equal only where every bit is."""
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


def finite(tensor: Tensor) -> bool:
    """Whether every element is a number: torch has no such question of 8 bits."""
    return bool(tensor.float().isfinite().all())
