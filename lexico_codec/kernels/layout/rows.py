"""A cache's memory as rows to transform, and back; decoded components where products want them.

What codec lexico-residual does beside its products and its entropy coder, each in one pass: on the
CPU by `native/layout.inl` where it is compiled, elsewhere by the plain operations here.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lexico_codec.kernels import library
from lexico_codec.kernels.dispatch import choose_on_cpu
from lexico_codec.kernels.layout import compiled
from lexico_codec.kernels.layout.sparse import Sparse
from lexico_codec.kernels.memory import TableMemory
from lexico_codec.rope import Turn, turned
from lexico_proto.errors import ShapeMismatch

_ROOM: Final = 1e30  # what may be turned without overflow, as in native/layout.inl


def gather(
    memory: TableMemory, means: Tensor, turn: Turn | None, *, kernel: str | None = None
) -> Tensor:
    """The rows of a memory: `[tables, tokens, heads * m]` float32, a new tensor.

    Args:
        memory: float32, float16 or bfloat16, keys before values in each layer.
        means: `[tables, heads * m]` float32: taken off.
        turn: what is done to keys before that, or None.
        kernel: "compiled" or "naive" to force one.
    """
    tables, tokens, heads, m = _checked(memory, means)
    if compiled.serves(memory) and choose_on_cpu("gather", kernel) == "compiled":
        return compiled.gather(memory, means, turn)
    wide = memory.read().to(torch.float32).view(tables // 2, 2, tokens, heads, m)
    if turn is not None:
        keys = wide[:, 0].transpose(0, 1).reshape(tokens, tables // 2 * heads, m)
        before = turned(keys, turn).view(tokens, tables // 2, heads, m)
        wide = torch.stack([before.transpose(0, 1), wide[:, 1]], 1)
    return wide.reshape(tables, tokens, heads * m) - means[:, None]


def scatter(
    rows: Tensor,
    means: Tensor,
    turn: Turn | None,
    memory: TableMemory,
    *,
    kernel: str | None = None,
) -> None:
    """Writes rows where `gather` would read them; what is beyond the type's range is its largest.

    What is no number becomes a finite one.

    Args:
        rows: `[tables, tokens, heads * m]` float32 or bfloat16.
        means: `[tables, heads * m]` float32: added.
        turn: what is done to keys after that, or None.
        memory: floating point, keys before values in each layer.
        kernel: "compiled" or "naive" to force one.
    """
    tables, tokens, heads, m = _checked(memory, means)
    if rows.shape != (tables, tokens, heads * m):
        raise ShapeMismatch(f"rows: {list(rows.shape)} for {tables}x{tokens}x{heads}x{m}")
    if compiled.serves(memory) and choose_on_cpu("scatter", kernel) == "compiled":
        return compiled.scatter(rows, means, turn, memory)
    most = torch.finfo(memory.dtype).max
    room = most / (2 * (turn.scale if turn is not None else 1))  # to turn in
    made = rows.float() + means[:, None]
    least, largest = torch.aminmax(made)  # NaN if any number is
    wild = not bool((least >= -room) & (largest <= room))  # of levels that no encoder chose
    if wild:
        made = torch.nan_to_num(made).clamp(-_ROOM, _ROOM)
    made = made.view(tables // 2, 2, tokens, heads, m)
    if turn is not None:
        flat = made[:, 0].transpose(0, 1).reshape(tokens, tables // 2 * heads, m)
        keys = turned(flat, turn).view(tokens, tables // 2, heads, m).transpose(0, 1)
        made[:, 0] = keys
    memory.write(made.clamp(-most, most) if wild else made)


def arrange(
    values: Tensor,
    scales: Tensor,
    sparse: Sparse,
    places: Tensor,
    length: int,
    dtype: torch.dtype,
    *,
    kernel: str | None = None,
) -> Tensor:
    """Decoded components, their atoms put back, in the rows where the products look for them.

    Args:
        values: `[s + c, tokens]` float32: coefficients, then the first c components, which follow
            one another in order of coding.
        scales: `[tokens]` float32: multiplied in last.
        sparse: its `atoms` reach over the first m components, or fewer where c is less.
        places: `[C]` int32, the row of each component, all different; those from c on are zero.
        length: rows to make. Those that `places` does not name are left as they are.
        dtype: float32 or bfloat16.
        kernel: "compiled" or "naive" to force one.

    Returns:
        `[length, tokens]` of `dtype`, where the values are.
    """
    tokens = values.shape[1]
    out = torch.empty(length, tokens, dtype=dtype, device=values.device)
    served = values.device.type == "cpu" and library.takes(values.dtype)
    if served and choose_on_cpu("arrange", kernel) == "compiled":
        compiled.arrange(values, scales, sparse, places, out)
        return out
    s = len(sparse.indices)
    components = values[s:].clone()
    width = min(len(sparse.atoms), len(components))
    for k in range(s):
        taken = sparse.atoms[:width].index_select(1, sparse.indices[k])
        components[:width] += taken * (sparse.coefficient_step * values[k])
    components *= scales
    at = places.long()
    out[at[len(components) :]] = 0
    out[at[: len(components)]] = components.to(dtype)
    return out


def _checked(memory: TableMemory, means: Tensor) -> tuple[int, int, int, int]:
    """Tables, tokens, heads and components, if the means fit them."""
    tables, heads, m = memory.tables, memory.heads, memory.m
    if tables % 2:
        raise ShapeMismatch(f"memory: {tables} tables, needs keys and values of each layer")
    if means.shape != (tables, heads * m) or means.dtype != torch.float32:
        raise ShapeMismatch(f"means: must be {[tables, heads * m]} float32")
    return tables, memory.tokens, heads, m
