"""Geometry of a Hugging Face model, read by the library's own functions.

Nothing here knows a model by name: the rotary embedding is the one that the model's own module
builds from its config, and how it pairs components is found by turning a probe with the module's
own function. What cannot be reproduced is refused, never guessed.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lexico_codec.geometry import DTYPES, Geometry, Pairing, Rope
from lexico_codec.rope import rotate
from lexico_proto.errors import Unsupported

_log = logging.getLogger(__name__)

_LENGTH_DEPENDENT = ("dynamic", "longrope")
"""RoPE kinds whose frequencies change with the length of the sequence: one inv_freq cannot describe
them.
"""

_FULL_ATTENTION = {"full_attention", "attention"}
"""What transformers calls it, and what some configs did."""


def geometry_of(config: Any, dtype: torch.dtype | str) -> Geometry:
    """Geometry of the cache that a model with this config fills.

    Args:
        config: a `transformers.PreTrainedConfig`.
        dtype: element type of the cache: the model's own, unless an engine stores 8 bits.

    Raises:
        Unsupported: layers other than full attention (sliding window, linear, latent), or a
            rotary embedding that one inv_freq, pairing and scale do not describe.
    """
    text = config.get_text_config(decoder=True)
    _refuse_other_layers(text)
    name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise Unsupported(f"a cache of {name}: only {', '.join(DTYPES)} can be stored")
    heads = int(text.num_attention_heads)
    head_dim = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    return Geometry(
        layers=int(text.num_hidden_layers),
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=name,
        rope=_rope_of(text, head_dim),
    )


def _refuse_other_layers(text: Any) -> None:
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if getattr(text, "kv_lora_rank", None):
        raise Unsupported(f"{text.model_type}: a latent (MLA) cache is not covered yet")
    # An empty cache built from the config holds one layer object for each of the model's layers.
    kinds = {type(layer).__name__ for layer in DynamicCache(config=text).layers}
    if kinds - {DynamicLayer.__name__}:
        raise Unsupported(
            f"{text.model_type}: cache layers {', '.join(sorted(kinds))}; only full attention "
            "is covered"
        )
    # Earlier releases give layers without keys and values to such a cache as if they had them.
    others = set(getattr(text, "layer_types", None) or ()) - _FULL_ATTENTION
    if others or any(_is_stateful(v) for v in vars(_modeling_module(text)).values()):
        raise Unsupported(
            f"{text.model_type}: linear layers, or others that keep a state of their own; only "
            "full attention is covered"
        )


def _is_stateful(value: Any) -> bool:
    return isinstance(value, type) and bool(getattr(value, "_is_stateful", False))


def _rope_of(text: Any, head_dim: int) -> Rope | None:
    module = _modeling_module(text)
    classes = [v for k, v in vars(module).items() if k.endswith("RotaryEmbedding")]
    if not classes:
        if hasattr(module, "create_sinusoidal_positions"):
            return _sinusoidal_rope(module, text, head_dim)
        return None
    parameters = getattr(text, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    if kind in _LENGTH_DEPENDENT:
        raise Unsupported(f"{text.model_type}: RoPE of type {kind} changes with the length")
    if not all(getattr(text, "no_rope_layers", None) or [True]):  # 0 marks a layer without
        raise Unsupported(f"{text.model_type}: some layers without RoPE are not covered yet")
    embedding = classes[0](config=text)
    if not hasattr(embedding, "inv_freq"):
        if hasattr(module, "create_sinusoidal_positions"):
            return _sinusoidal_rope(module, text, head_dim)
        raise _no_inv_freq(text)
    inv_freq = embedding.inv_freq.float()
    scale = float(getattr(embedding, "attention_scaling", 1.0))
    for pairing in ("half", "interleaved"):
        rope = Rope(tuple(inv_freq.tolist()), pairing, scale)
        if rope.rotary_dim <= head_dim and _reproduces(module, embedding, rope, head_dim):
            return rope
    raise _no_inv_freq(text)


def _no_inv_freq(text: Any) -> Unsupported:
    return Unsupported(f"{text.model_type}: its rotary embedding is none that inv_freq describes")


def _modeling_module(text: Any) -> ModuleType:
    package = type(text).__module__.rpartition(".configuration_")
    if not package[1]:
        raise Unsupported(f"{type(text).__name__}: no modeling module found beside its config")
    return importlib.import_module(f"{package[0]}.modeling_{package[2]}")


def _reproduces(module: ModuleType, embedding: Any, rope: Rope, head_dim: int) -> bool:
    """Whether `rotate` turns a probe as the model's module does."""
    positions = torch.tensor([0, 1, 7, 100, 3001])
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(len(positions), 2, head_dim, generator=generator)
    cos, sin = embedding(probe, positions[None])
    expected = rotate(probe, positions, rope)
    for width in (head_dim, rope.rotary_dim):  # some attentions pass the turned part alone
        keys = probe[..., :width].transpose(0, 1)[None]
        try:
            turned: Tensor = module.apply_rotary_pos_emb(keys, keys, cos, sin)[1]
        except (RuntimeError, TypeError, ValueError) as error:
            _log.debug("rotary probe width=%d failed: %s", width, error)
            continue
        turned = turned[0].transpose(0, 1)
        if turned.shape[-1] == width and torch.allclose(turned, expected[..., :width], atol=2e-4):
            return True
    return False


def _sinusoidal_rope(module: ModuleType, text: Any, head_dim: int) -> Rope:
    """RoPE of modules that keep a table of sines and cosines (GPT-J's way) and turn neighbouring
    pairs.
    """
    rotary_dim = int(getattr(text, "rotary_dim", None) or head_dim)
    steps = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    inv_freq = 1.0 / 10000.0**steps
    pairing: Pairing = "interleaved"
    rope = Rope(tuple(inv_freq.tolist()), pairing)
    positions = torch.tensor([0, 1, 7, 100])
    sin, cos = module.create_sinusoidal_positions(128, rotary_dim)[positions].chunk(2, dim=-1)
    probe = torch.randn(1, 4, 2, rotary_dim, generator=torch.Generator().manual_seed(0))
    turned = module.apply_rotary_pos_emb(probe, sin[None], cos[None])
    if not torch.allclose(turned[0], rotate(probe[0], positions, rope), atol=2e-4):
        raise Unsupported(f"{text.model_type}: its rotary table is none that inv_freq describes")
    return rope
