"""Models on which a codec of keys might fall off a cliff, made from a Llama that is at hand.

`with_outliers` and `with_wide_heads` leave the model's function as it was, so that its predictions
are judged by what the codec does alone; `with_constant_keys` does not. All return a new model.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from lexico_codec.codecs.codec import SINK_TOKENS

OUTLIER: Final = 30.0
"""Norm of an outlier channel, in norms of the layer's median channel."""
OUTLIER_PAIRS: Final = 2
"""RoPE pairs of each KV head that are outliers: four channels."""
TWICE: Final = "twice"
"""RoPE type of `with_wide_heads`: every frequency of a head of half the width, two times."""


@torch.inference_mode()
def keys_before_rope(model: Any, ids: Sequence[int]) -> Tensor:
    """`[layers, tokens, kv_heads, head_dim]` of a text, sinks left out."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        found.append(output[0, SINK_TOKENS:].float())

    hooks = [block.self_attn.k_proj.register_forward_hook(keep) for block in model.model.layers]
    try:
        model(torch.tensor([list(ids)]), use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    flat = torch.stack(found)
    return flat.view(*flat.shape[:2], model.config.num_key_value_heads, -1)


def channel_norms(keys: Tensor) -> Tensor:
    """Root mean square over tokens of `keys_before_rope`: `[layers, kv_heads, head_dim]`."""
    return keys.square().mean(1).sqrt()


def with_outliers(model: Any, ids: Sequence[int], seed: int = 0) -> tuple[Any, Tensor]:
    """The same function, with outliers in every KV head: `OUTLIER_PAIRS` drawn RoPE pairs.

    Keys are multiplied by a number a pair, which turning does not see, and the queries that meet
    them divided by it. The smaller half of a pair gets `OUTLIER` times the median channel's norm.

    Args:
        model: a Llama.
        ids: a text to measure norms on.
        seed: of what is drawn.

    Returns:
        The model, and which channels are outliers, `[layers, kv_heads, head_dim]`.
    """
    made = copy.deepcopy(model)
    norms = channel_norms(keys_before_rope(model, ids))
    layers, heads, dim = norms.shape
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(layers, heads, dim // 2, generator=generator).argsort(2)[..., :OUTLIER_PAIRS]
    pairs = torch.zeros(layers, heads, dim // 2, dtype=torch.bool).scatter(2, drawn, True)
    chosen = torch.cat([pairs, pairs], 2)
    # Outliers are above the median wherever they were before.
    medians = norms.masked_fill(chosen, torch.inf).flatten(1).median(1).values
    smaller = torch.minimum(*norms.chunk(2, 2))
    factors = torch.where(pairs, OUTLIER * medians[:, None, None] / smaller, 1.0)
    for block, factor in zip(made.model.layers, factors, strict=True):
        attention = block.self_attn
        rows = torch.cat([factor, factor], 1)  # [kv_heads, head_dim]
        _multiply(attention.k_proj, rows.flatten())
        of_queries = rows.repeat_interleave(attention.num_key_value_groups, 0)
        _multiply(attention.q_proj, 1 / of_queries.flatten())
    return made, chosen


class ConstantKeys(nn.Module):
    """Stands for a `k_proj`: one vector, whatever comes in."""

    vector: Tensor

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.register_buffer("vector", vector)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[batch, tokens, hidden]` to `[batch, tokens, kv_heads * head_dim]`."""
        return self.vector.expand(*hidden.shape[:-1], -1)


def with_constant_keys(model: Any, ids: Sequence[int], layer: int) -> Any:
    """Another function: the keys of one layer are, before RoPE, their mean over a text."""
    made = copy.deepcopy(model)
    mean = keys_before_rope(model, ids)[layer].mean(0).flatten()
    made.model.layers[layer].self_attn.k_proj = ConstantKeys(mean)
    return made


def with_wide_heads(model: Any, seed: int = 0) -> Any:
    """The same function with KV heads of twice the width, each of two that there were.

    The two heads' components of equal frequency are mixed by a random unitary matrix, which
    commutes with turning, and their values by an orthogonal one: no component of a wide head is
    that of a narrow one. A head without a partner is mixed with zeros, and query heads that its
    group lacks are zero.
    """
    config = model.config
    heads, dim = config.num_key_value_heads, config.head_dim
    group = config.num_attention_heads // heads
    wide_heads = (heads + 1) // 2
    _register_twice()
    wide = copy.deepcopy(config)
    wide.head_dim, wide.num_key_value_heads = 2 * dim, wide_heads
    wide.num_attention_heads = 2 * wide_heads * group
    wide.rope_parameters = {**config.rope_parameters, "rope_type": TWICE}
    with _quietly():
        made = type(model)(wide).to(model.dtype).eval()
    others = {name: t for name, t in model.state_dict().items() if "self_attn" not in name}
    made.load_state_dict(others, strict=False)
    generator = torch.Generator().manual_seed(seed)
    for old, new in zip(model.model.layers, made.model.layers, strict=True):
        _widen(old.self_attn, new.self_attn, heads, dim, group, generator)
    return made


def _widen(
    old: Any, new: Any, heads: int, dim: int, group: int, generator: torch.Generator
) -> None:
    keys = _padded(old.k_proj.weight, heads, dim)  # [2 wide, dim, hidden]
    values = _padded(old.v_proj.weight, heads, dim)
    queries = _padded(old.q_proj.weight, heads * group, dim, 2 * group)
    outputs = _padded(old.o_proj.weight.T, heads * group, dim, 2 * group)
    made: dict[str, list[Tensor]] = {name: [] for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    for wide in range(len(keys) // 2):
        unitary = _unitary(dim // 2, generator)
        turned = torch.linalg.qr(
            torch.randn(2 * dim, 2 * dim, generator=generator, dtype=torch.float64)
        ).Q
        made["k_proj"].append(_mixed(keys[2 * wide : 2 * wide + 2], unitary))
        made["v_proj"].append(turned @ values[2 * wide : 2 * wide + 2].flatten(0, 1))
        for place in range(2 * group):
            head, slot = 2 * wide * group + place, place // group
            both = torch.zeros(2, dim, queries.shape[2], dtype=torch.float64)
            both[slot] = queries[head] * math.sqrt(2)  # attention divides by √head_dim
            made["q_proj"].append(_mixed(both, unitary))
            made["o_proj"].append(turned[:, slot * dim : (slot + 1) * dim] @ outputs[head])
    with torch.no_grad():
        for name, rows in made.items():
            weight = torch.cat(rows)
            target = getattr(new, name).weight
            target.copy_(weight.T if name == "o_proj" else weight)


def _padded(weight: Tensor, heads: int, dim: int, multiple: int = 2) -> Tensor:
    """`[n, dim, hidden]` float64 of `[heads * dim, hidden]`, zeros behind the last head."""
    wide = weight.detach().double().view(heads, dim, -1)
    return torch.cat([wide, wide.new_zeros(-heads % multiple, *wide.shape[1:])])


def _unitary(pairs: int, generator: torch.Generator) -> Tensor:
    """`[pairs, 2, 2]` complex."""
    drawn = torch.randn(pairs, 2, 2, 2, generator=generator, dtype=torch.float64)
    found: Tensor = torch.linalg.qr(torch.view_as_complex(drawn)).Q
    return found


def _mixed(rows: Tensor, unitary: Tensor) -> Tensor:
    """`[2 dim, hidden]`: two heads' rows `[2, dim, hidden]` mixed pair by pair."""
    first, second = rows.chunk(2, 1)  # a pair's two halves, `[2, pairs, hidden]`
    mixed = torch.einsum("pab,bph->aph", unitary, torch.complex(first, second)).flatten(0, 1)
    return torch.cat([mixed.real, mixed.imag])


def _multiply(linear: nn.Linear, rows: Tensor) -> None:
    with torch.no_grad():
        linear.weight.mul_(rows[:, None])
        if linear.bias is not None:
            linear.bias.mul_(rows)


def _register_twice() -> None:
    """Makes the RoPE type known to transformers, which everything else then reads it from."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    def twice(config: Any, *_: Any, **__: Any) -> tuple[Tensor, float]:
        half = config.head_dim // 2
        exponents = torch.arange(0, half, 2, dtype=torch.float) / half
        inv_freq = 1.0 / (config.rope_parameters["rope_theta"] ** exponents)
        return torch.cat([inv_freq, inv_freq]), 1.0

    known: dict[str, Callable[..., tuple[Tensor, float]]] = ROPE_INIT_FUNCTIONS
    known.setdefault(TWICE, twice)


@contextmanager
def _quietly() -> Iterator[None]:
    """Of an unknown RoPE type transformers warns that nothing checks its parameters."""
    from transformers.utils.logging import get_verbosity, set_verbosity

    level = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(level)
