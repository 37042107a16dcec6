"""Keys as caches store them, at many positions, for sets that code pages of unknown position.

RoPE is relative: a window that lay further back in a longer sequence would have the same values,
the same attention and the same keys, each turned further by as many positions. So one pass over a
window gives its keys wherever it might lie.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from lexico_codec.canonical import canonical_json
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.rope import rotate, unrotate
from lexico_codec.sets.info import AS_STORED, KEYS

_USUAL_POSITIONS: Final = 8192
_MOST_POSITIONS: Final = 32768
"""Few prompts are longer, and what is learned for them costs bytes in all others."""


def positions_of(config: Any, geometry: Geometry, asked: int = 0) -> int:
    """How many positions keys as they are stored are learned at.

    Args:
        config: the model's.
        geometry: of its cache.
        asked: by the user; 0 for as many as the model has, and at most 32768.

    Returns:
        0 for a model without rotary embedding: its keys are the same at every position.
    """
    if geometry.rope is None:
        return 0
    text = config.get_text_config(decoder=True)
    most = getattr(text, "max_position_embeddings", None) or _USUAL_POSITIONS
    return asked or min(int(most), _MOST_POSITIONS)


def first_position(window: Sequence[int], positions: int) -> int:
    """Where a window is taken to begin: as pages lie in prompts whose lengths are evenly spread on
    a logarithmic scale up to `positions`. Equal windows begin at equal positions.

    Args:
        window: token ids.
        positions: that prompts have at most; those that the window fills give 0.
    """
    length = len(window)
    if positions <= length:
        return 0
    digest = hashlib.blake2b(np.asarray(window, dtype="<u4").tobytes(), digest_size=16).digest()
    drawn = random.Random(int.from_bytes(digest, "little"))
    prompt = length * (positions / length) ** drawn.random()
    return int(drawn.random() * (prompt - length))


def moved(keys: Tensor, by: int, rope: Rope) -> Tensor:
    """Keys `[tokens, heads, head_dim]` as they would be `by` positions further back, or nearer
    where it is negative. Gradients of keys turn alike: no length changes."""
    positions = torch.full((len(keys),), by, device=keys.device)
    return rotate(keys, positions, replace(rope, scale=1.0))


def learned_from(keys: Tensor, first: int, rope: Rope | None, by: int | None) -> Tensor:
    """Keys as a set learns from them.

    Args:
        keys: `[tokens, heads, head_dim]` of consecutive tokens, as the cache has them.
        first: position of the first of them.
        rope: of the model; None to take them as they are.
        by: how many positions further back they are taken to be; None for keys before RoPE.
    """
    if rope is None:
        return keys
    if by is not None:
        return moved(keys, by, rope)
    return unrotate(keys, torch.arange(first, first + len(keys), device=keys.device), rope)


def told_keys(positions: int) -> dict[str, Any]:
    """What the training of a set says of its keys; nothing of those in a codec's usual form."""
    return {KEYS: AS_STORED, "positions": positions} if positions else {}


def told_rope(geometry: Geometry) -> dict[str, Any]:
    """A model's rotary embedding as `SetInfo` has it."""
    found: dict[str, Any] = (
        json.loads(canonical_json(asdict(geometry.rope))) if geometry.rope else {}
    )
    return found
