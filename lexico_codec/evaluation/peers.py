"""The published methods of `bench.baselines`, where that package is importable.

It is part of the repository and not of the wheel, so nothing here imports it by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import Tensor

from lexico_codec.codecs.abc import SINK_TOKENS
from lexico_codec.evaluation.caches import cache_of, forward, states_of
from lexico_codec.evaluation.prefixes import ExactText
from lexico_codec.geometry import Rope
from lexico_proto.errors import LexicoError

MODULES: Final = (
    "per_token",
    "kivi",
    "turboquant",
    "zipcache",
    "kvtc",
    "cachegen",
    "cskv",
    "mustafar",
)
"""Modules of `bench.baselines`, each with its `coders()`."""
TRAINING_TEXTS: Final = 12
FAILURES: Final = (ValueError, RuntimeError, LexicoError)
"""What a method says that does not fit a model: `head_dim 8 is no multiple of the group`."""

_PACKAGE: Final = "bench.baselines"


@dataclass(frozen=True, eq=False)
class Peer:
    """One method at one setting."""

    name: str
    method: str
    coder: Any
    """A `bench.baselines.coder.Coder`."""


def available() -> bool:
    """Whether the package is there."""
    try:
        return find_spec(f"{_PACKAGE}.coder") is not None
    except ModuleNotFoundError:
        return False


def load_peers() -> list[Peer]:
    """Every setting of every method, not calibrated yet; none where the package is not there."""
    if not available():
        return []
    found = []
    for name in MODULES:
        for coder in import_module(f"{_PACKAGE}.{name}").coders():
            found.append(Peer(coder.name, name, coder))
    return found


def calibrate(peers: Sequence[Peer], training: Sequence[Any]) -> dict[str, str]:
    """Lets methods learn.

    Returns:
        Why a method cannot run here, by its name.
    """
    failed = {}
    for peer in peers:
        try:
            peer.coder.calibrate(training)
        except FAILURES as error:
            failed[peer.name] = str(error)
    return failed


def prefix_of(states: Tensor, importance: Tensor, tokens: slice, rope: Rope) -> Any:
    """The part of a cache that peers are given, a `bench.baselines.coder.Prefix`.

    Args:
        states: `[layers, 2, kv_heads, tokens, head_dim]`.
        importance: `[layers, tokens]`, see `importance_of`.
        tokens: which of them.
        rope: of the model.
    """
    part = states[:, :, :, tokens].transpose(2, 3).half().float().cpu()
    positions = torch.arange(tokens.start, tokens.stop)
    made = import_module(f"{_PACKAGE}.coder").Prefix
    return made(part[:, 0], part[:, 1], positions, rope, importance[:, tokens].cpu())


def through_peer(
    peer: Peer, exact: ExactText, importance: Tensor, coded: int, rope: Rope
) -> tuple[Tensor, int]:
    """The prefix's states as a peer gives them back, and the bytes, exact sinks included."""
    tokens = slice(SINK_TOKENS, coded)
    stored = peer.coder.code(prefix_of(exact.states, importance, tokens, rope))
    made = exact.states.clone()
    for part, tensor in enumerate((stored.keys, stored.values)):
        made[:, part, :, tokens] = tensor.transpose(1, 2).to(made)
    sinks = 2 * made[:, :, :, :SINK_TOKENS].numel()  # in float16
    return made, int(stored.size) + sinks


@torch.inference_mode()
def importance_of(model: Any, ids: Sequence[int]) -> Tensor:
    """`[layers, tokens]`: mean attention that each token gets from those that can see it.

    Only eager attention shows its weights: this is another forward pass.
    """
    former = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        tokens = torch.tensor([list(ids)], device=model.device)
        seen = model(tokens, use_cache=False, logits_to_keep=1, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(former)
    later = torch.arange(len(ids), 0, -1, device=model.device)  # itself included
    return torch.stack([layer[0].mean(0).sum(0) / later for layer in seen])


def training_prefix(model: Any, ids: Sequence[int], rope: Rope) -> Any:
    """One text for `calibrate`."""
    cache = cache_of(torch.empty(0, 0, 0, 0, 0))
    forward(model, ids, cache, 1)
    tokens = slice(SINK_TOKENS, len(ids))
    return prefix_of(states_of(cache), importance_of(model, ids), tokens, rope)
