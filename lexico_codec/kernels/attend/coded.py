"""Attention over the coded tokens of one layer, which never makes them dense."""

from __future__ import annotations

import os
from typing import Final

import torch
from torch import Tensor

from lexico_codec.kernels.attend import long as long_attend
from lexico_codec.kernels.attend import naive as naive_attend
from lexico_codec.kernels.attend.layer import CodedLayer
from lexico_codec.kernels.dispatch import KERNEL_VARIABLE, Kernel, choose
from lexico_proto.errors import ShapeMismatch

LONG_QUERY: Final = 8
"""More query tokens than this go over reconstructed chunks: there the products are dense anyway."""


def attend(
    query: Tensor,
    coded: CodedLayer,
    exact_keys: Tensor,
    exact_values: Tensor,
    scale: float,
    *,
    kernel: Kernel | None = None,
) -> Tensor:
    """Attention of the newest tokens over coded ones and exact ones, one softmax over both.

    Every coded token precedes every query; query `i` sees the exact tokens but the last
    `q_len - 1 - i`. The softmax is float32, or float64 for float64 queries.

    Args:
        query: `[q_heads, q_len, m]`; query head h attends over kv head
            `h // (q_heads / kv_heads)`. Keys are coded as RoPE left them.
        coded: the coded tokens, perhaps none, on the same device.
        exact_keys, exact_values: `[kv_heads, n, m]`, n >= q_len: any early exact tokens (attention
            sinks), then the newest, the query tokens' own last.
        scale: what a score is multiplied by.
        kernel: a forced kernel, or None for the usual one. No kernel is compiled for this: where
            "compiled" is asked for, the naive twin serves.

    Returns:
        `[q_heads, q_len, m]` in the query's dtype.

    Raises:
        ShapeMismatch: shapes, dtypes or devices that do not fit.
        ConfigurationError: a forced kernel that cannot serve.
    """
    _check_attend(query, coded, exact_keys, exact_values)
    with torch.no_grad():
        if query.shape[1] > LONG_QUERY:
            return long_attend.attend(query, coded, exact_keys, exact_values, scale)
        if _serving(query, coded, kernel) == "triton":
            from lexico_codec.kernels.attend import triton_attend

            return triton_attend.attend(query, coded, exact_keys, exact_values, scale)
        return naive_attend.attend(query, coded, exact_keys, exact_values, scale)


def _serving(query: Tensor, coded: CodedLayer, kernel: Kernel | None) -> Kernel:
    forced = kernel or os.environ.get(KERNEL_VARIABLE) or None
    if forced == "compiled":
        forced = "naive"
    return choose("attend", query.device, query.dtype, coded.atoms.m, coded.sparsity, forced)


def _check_attend(query: Tensor, coded: CodedLayer, keys: Tensor, values: Tensor) -> None:
    heads, m = coded.kv_heads, coded.atoms.m
    if query.ndim != 3 or query.shape[2] != m or query.shape[0] % heads or 0 in query.shape:
        raise ShapeMismatch(
            f"query: must be [multiple of {heads}, q_len, {m}], not {list(query.shape)}"
        )
    if keys.ndim != 3 or (keys.shape[0], keys.shape[2]) != (heads, m):
        raise ShapeMismatch(f"exact_keys: must be [{heads}, n, {m}], not {list(keys.shape)}")
    if keys.shape[1] < query.shape[1]:
        raise ShapeMismatch(
            f"exact_keys: {keys.shape[1]} tokens, {query.shape[1]} are the queries' own"
        )
    if values.shape != keys.shape:
        raise ShapeMismatch(
            f"exact_values: must be {list(keys.shape)} like exact_keys, not {list(values.shape)}"
        )
    if not query.dtype.is_floating_point or keys.dtype != query.dtype or values.dtype != keys.dtype:
        raise ShapeMismatch("exact_keys, exact_values: must have the floating point type of query")
    if any(part.device != coded.atoms.stack.device for part in (query, keys, values)):
        raise ShapeMismatch("query, exact_keys, exact_values: must be on the device of the atoms")
