"""A cache's memory as rows to transform, and back; decoded components where products want them.

What codec lexico-residual does beside its products and its entropy coder, each in one pass: on the
CPU by `native/layout.inl` where it is compiled, elsewhere by the plain operations here.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lexico_codec.kernels.dispatch import choose_on_cpu
from lexico_codec.kernels.layout import compiled
from lexico_codec.kernels.layout.sparse import Sparse
from lexico_codec.rope import Turn, turned
from lexico_proto.errors import ShapeMismatch

_ROOM: Final = 1e30  # what may be turned without overflow, as in native/layout.inl


def gather(group: Tensor, means: Tensor, turn: Turn | None, *, kernel: str | None = None) -> Tensor:
    """The rows of a layer group: `[2 layers, tokens, heads * dim]` float32, a new tensor.

    Args:
        group: `[layers, 2, tokens, heads, dim]` float32, float16 or bfloat16, keys first.
        means: `[2 layers, heads * dim]` float32: taken off.
        turn: what is done to keys before that, or None.
        kernel: "compiled" or "naive" to force one.
    """
    layers, _, tokens, heads, dim = group.shape
    _check_means(means, layers, heads, dim)
    if _compiled("gather", group, kernel):
        return compiled.gather(group, means, turn)
    wide = group.to(torch.float32)
    if turn is not None:
        keys = wide[:, 0].transpose(0, 1).reshape(tokens, layers * heads, dim)
        before = turned(keys, turn).view(tokens, layers, heads, dim)
        wide = torch.stack([before.transpose(0, 1), wide[:, 1]], 1)
    return wide.reshape(2 * layers, tokens, heads * dim) - means[:, None]


def scatter(
    rows: Tensor, means: Tensor, turn: Turn | None, out: Tensor, *, kernel: str | None = None
) -> None:
    """Writes rows where `gather` would read them; what is beyond the type's range is its largest.

    What is no number becomes a finite one.

    Args:
        rows: `[2 layers, tokens, heads * dim]` float32 or bfloat16.
        means: `[2 layers, heads * dim]` float32: added.
        turn: what is done to keys after that, or None.
        out: `[layers, 2, tokens, heads, dim]` floating point, of any strides.
        kernel: "compiled" or "naive" to force one.
    """
    layers, _, tokens, heads, dim = out.shape
    _check_means(means, layers, heads, dim)
    if rows.shape != (2 * layers, tokens, heads * dim):
        raise ShapeMismatch(f"rows: {list(rows.shape)} for a group of {list(out.shape)}")
    if _compiled("scatter", out, kernel):
        return compiled.scatter(rows, means, turn, out)
    most = torch.finfo(out.dtype).max
    room = most / (2 * (turn.scale if turn is not None else 1))  # to turn in
    found = rows.float() + means[:, None]
    least, largest = torch.aminmax(found)  # NaN if any number is
    wild = not bool((least >= -room) & (largest <= room))  # of levels that no encoder chose
    if wild:
        found = torch.nan_to_num(found).clamp(-_ROOM, _ROOM)
    made = found.view(layers, 2, tokens, heads, dim)
    keys = made[:, 0]
    if turn is not None:
        flat = keys.transpose(0, 1).reshape(tokens, layers * heads, dim)
        keys = turned(flat, turn).view(tokens, layers, heads, dim).transpose(0, 1)
    with torch.no_grad():
        for part, numbers in enumerate((keys, made[:, 1])):
            out[:, part].copy_(numbers.clamp(-most, most) if wild else numbers)


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
    if _compiled("arrange", values, kernel):
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


def _compiled(operation: str, tensor: Tensor, kernel: str | None) -> bool:
    """Whether the compiled kernel serves."""
    if not compiled.serves(tensor):
        return False
    return choose_on_cpu(operation, kernel) == "compiled"


def _check_means(means: Tensor, layers: int, heads: int, dim: int) -> None:
    if means.shape != (2 * layers, heads * dim) or means.dtype != torch.float32:
        raise ShapeMismatch(f"means: must be {[2 * layers, heads * dim]} float32")
