"""How keys and values lie in a layer's tensor: found by having the engine itself write a probe.

Shapes do not tell it. vLLM's CPU attention and its attention on GPUs register tensors of the same
shape, `[blocks, heads, block_tokens, 2 * head_dim]`; in one, keys and values of a token stand side
by side, in the other a head of a block holds all keys, transposed, and then all values. A lossless
codec would not notice that it reads the wrong one. So random keys and values are written by the
engine's own kernel, and the layout is the one in which they are found, bit for bit. Where they are
found in none, the cache is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from lexico_codec.tensors import FLOAT8
from lexico_proto.errors import Unsupported

Views = tuple[Tensor, Tensor]
"""Keys and values of a layer, each `[blocks, block_tokens, kv_heads, head_dim]`, as views."""
Write = Callable[[Tensor, Tensor, Tensor], None]
"""`(keys, values, slots)`: has the engine write keys and values, `[n, kv_heads, head_dim]` of the
cache's element type, of n tokens into slots, `[n]` int64; slot i is token `i % block_tokens` of
block `i // block_tokens`."""
Layout = Callable[[Tensor, int, int, int], "Views | None"]
"""`(tensor, block_tokens, kv_heads, head_dim)` → its views; None for a tensor of another shape."""


def side_by_side(tensor: Tensor, block_tokens: int, heads: int, dim: int) -> Views | None:
    """`[blocks, heads, block_tokens, 2 * dim]`: keys and values of a token next to each other."""
    if tensor.ndim != 4 or tensor.shape[1:] != (heads, block_tokens, 2 * dim):
        return None
    keys, values = tensor[..., :dim], tensor[..., dim:]
    return keys.transpose(1, 2), values.transpose(1, 2)


def side_by_side_tokens_first(
    tensor: Tensor, block_tokens: int, heads: int, dim: int
) -> Views | None:
    """`[blocks, block_tokens, heads, 2 * dim]`."""
    if tensor.ndim != 4 or tensor.shape[1:] != (block_tokens, heads, 2 * dim):
        return None
    return tensor[..., :dim], tensor[..., dim:]


def one_behind_the_other(tensor: Tensor, block_tokens: int, heads: int, dim: int) -> Views | None:
    """The same shape, but a head of a block is all keys and then all values."""
    halves = _halves(tensor, block_tokens, heads, dim)
    if halves is None:
        return None
    shape = (*halves[0].shape[:2], block_tokens, dim)
    keys, values = (half.view(shape) for half in halves)
    return keys.transpose(1, 2), values.transpose(1, 2)


def transposed_keys(tensor: Tensor, block_tokens: int, heads: int, dim: int) -> Views | None:
    """The same, with the keys of a block as `[dim, block_tokens]`: vLLM's CPU attention."""
    halves = _halves(tensor, block_tokens, heads, dim)
    if halves is None:
        return None
    blocks = halves[0].shape[0]
    keys = halves[0].view(blocks, heads, dim, block_tokens).permute(0, 3, 1, 2)
    return keys, halves[1].view(blocks, heads, block_tokens, dim).transpose(1, 2)


def keys_first(tensor: Tensor, block_tokens: int, heads: int, dim: int) -> Views | None:
    """`[2, blocks, block_tokens, heads, dim]`; strides may put heads before tokens."""
    if tensor.ndim != 5 or tensor.shape[0] != 2 or tensor.shape[2:] != (block_tokens, heads, dim):
        return None
    return tensor[0], tensor[1]


def blocks_first(tensor: Tensor, block_tokens: int, heads: int, dim: int) -> Views | None:
    """`[blocks, 2, block_tokens, heads, dim]`; strides may put heads before tokens."""
    if tensor.ndim != 5 or tensor.shape[1:] != (2, block_tokens, heads, dim):
        return None
    return tensor[:, 0], tensor[:, 1]


def heads_before_tokens(tensor: Tensor, block_tokens: int, heads: int, dim: int) -> Views | None:
    """`[2, blocks, heads, block_tokens, dim]`, or `[blocks, 2, heads, block_tokens, dim]`."""
    if tensor.ndim != 5 or tensor.shape[2:] != (heads, block_tokens, dim):
        return None
    for axis in (0, 1):
        if tensor.shape[axis] == 2:
            keys, values = tensor.unbind(axis)
            return keys.transpose(1, 2), values.transpose(1, 2)
    return None


LAYOUTS: Final[Mapping[str, Layout]] = {
    "keys and values of a token side by side": side_by_side,
    "the same, tokens before heads": side_by_side_tokens_first,
    "keys of a block transposed, then values": transposed_keys,
    "keys of a block, then values": one_behind_the_other,
    "keys of all blocks, then values": keys_first,
    "keys and values block by block": blocks_first,
    "heads before tokens": heads_before_tokens,
}


def elements(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A layer's tensor in the element type of its cache: vLLM keeps 8 bits as bytes, of no type."""
    stored = dtype in FLOAT8 and tensor.dtype == torch.uint8
    return tensor.view(dtype) if stored else tensor


def recognised(
    tensor: Tensor, block_tokens: int, heads: int, dim: int, write: Write, layer: str = "a layer"
) -> tuple[str, Views]:
    """The layout in which the engine writes, and the views of keys and values.

    The probe takes a few slots of blocks that hold nothing yet; they are zero afterwards.

    Args:
        tensor: of a layer, as the engine registers it, see `elements`.
        block_tokens: the block size of the engine's scheduler; where its kernels split blocks, the
            views have the smaller ones.
        heads, dim: KV heads and head dimension.
        write: see the type.
        layer: its name, for messages.

    Raises:
        Unsupported: the probe is found in no layout.
    """
    fitting = {
        (name, size): views
        for size in _block_sizes(tensor, block_tokens)
        for name, layout in LAYOUTS.items()
        if (views := layout(tensor, size, heads, dim)) is not None
    }
    shape = f"{list(tensor.shape)} of {tensor.dtype}, strides {list(tensor.stride())}"
    if not fitting:
        raise Unsupported(
            f"{layer}: a cache of {shape} is none of {block_tokens} tokens a block, {heads} KV "
            f"heads of {dim}: this layout is not known"
        )
    blocks, size = next(iter(fitting.values()))[0].shape[:2]
    slots = _slots(blocks * size // block_tokens, block_tokens).to(tensor.device)
    probe = _probe(len(slots), heads, dim, tensor)
    with torch.inference_mode(tensor.is_inference()):
        write(probe[0], probe[1], slots)
        found = [
            (kind, views)
            for kind, views in fitting.items()
            if _are_at(views, slots, kind[1], probe)
        ]
        write(torch.zeros_like(probe[0]), torch.zeros_like(probe[1]), slots)
    if not found:
        raise Unsupported(
            f"{layer}: what the engine writes into a cache of {shape} is found in no layout that "
            "is known: it cannot be shared"
        )
    (name, _), views = found[0]
    return name, views


def _block_sizes(tensor: Tensor, block_tokens: int) -> list[int]:
    """Tokens that a block of the tensor may have, the largest first."""
    sizes = {size for size in tensor.shape if size and block_tokens % size == 0}
    return sorted(sizes, reverse=True)


def _are_at(views: Views, slots: Tensor, size: int, probe: Tensor) -> bool:
    """Whether keys and values of a probe are found in their slots."""
    at = slots // size, slots % size
    if probe.dtype in FLOAT8:  # torch compares none of these
        keys, values = (view.view(torch.uint8) for view in views)
        views, probe = (keys, values), probe.view(torch.uint8)
    return all(torch.equal(view[at], part) for view, part in zip(views, probe, strict=True))


def _halves(tensor: Tensor, block_tokens: int, heads: int, dim: int) -> Views | None:
    """The first and second half of each head of each block, `[blocks, heads, n]`."""
    shaped = tensor.ndim == 4 and tensor.shape[1:] == (heads, block_tokens, 2 * dim)
    if not shaped or tensor.stride()[2:] != (2 * dim, 1):
        return None
    whole = tensor.flatten(2)
    return whole[..., : block_tokens * dim], whole[..., block_tokens * dim :]


def _slots(blocks: int, block_tokens: int) -> Tensor:
    """The first two and the last slot of a block, and one of another block where there is one."""
    block = min(1, blocks - 1)
    within = sorted({0, min(1, block_tokens - 1), block_tokens - 1})
    slots = [block * block_tokens + slot for slot in within]
    if blocks > block + 1:
        slots.append((blocks - 1) * block_tokens + block_tokens // 2)
    return torch.tensor(slots, dtype=torch.int64)


def _probe(tokens: int, heads: int, dim: int, tensor: Tensor) -> Tensor:
    """`[2, tokens, heads, dim]` of numbers that are all different, exact in each dtype; in 8 bits
    of as many as there are, but for those that some kernel may take for zero."""
    count = 2 * tokens * heads * dim
    generator = torch.Generator().manual_seed(count)
    order = torch.randn(count, generator=generator)
    if tensor.dtype in FLOAT8:
        order = order.sign() * order.abs().clamp(min=torch.finfo(tensor.dtype).smallest_normal)
    return order.view(2, tokens, heads, dim).to(tensor.dtype).to(tensor.device)
