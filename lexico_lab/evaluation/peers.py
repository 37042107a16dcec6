"""The published methods of `lexico_lab.published` in an evaluation: which run, and on what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from lexico_codec.codecs.codec import SINK_TOKENS
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.hf_inputs import cache_inputs
from lexico_lab.caches import cache_of, forward, states_of
from lexico_lab.evaluation.prefixes import Source, read_text, training_texts
from lexico_lab.evaluation.settings import EvalSettings
from lexico_lab.evaluation.ways import Way
from lexico_lab.published import scores
from lexico_lab.published.coder import Coder, Prefix
from lexico_lab.published.eviction import USUAL, Eviction, evictions
from lexico_lab.published.methods import CODERS
from lexico_proto.errors import ConfigurationError, InvalidInput, LexicoError

TRAINING_TEXTS: Final = 12
FAILURES: Final = (ValueError, RuntimeError, LexicoError)
"""What a method says that does not fit a model: `head_dim 8 is no multiple of the group`."""

_QUERIES: Final = 1024
"""Most tokens at once whose attention over all others lies in memory, for every head and layer."""


@dataclass(frozen=True, eq=False)
class Published:
    """One method at one setting."""

    name: str
    method: str

    def goes_by(self, name: str) -> bool:
        """Whether its method or its own name contains a name, in either case of letters."""
        return name.lower() in self.method.lower() or name.lower() in self.name.lower()


@dataclass(frozen=True, eq=False)
class Peer(Published):
    """One that codes: what comes back of a cache has its shape."""

    coder: Coder


@dataclass(frozen=True, eq=False)
class Evicting(Published):
    """One that keeps some tokens of each head: see `evictions`."""

    eviction: Eviction
    through: Way | None = None
    """What codes the tokens that are kept; None where they stay as they are."""


def load_peers(names: Sequence[str] = ()) -> list[Published]:
    """Settings of methods, not calibrated yet.

    Args:
        names: parts of names, see `Published.goes_by`; none for every setting of every method that
            codes and of the usual ones that evict.

    Raises:
        ConfigurationError: a name that nothing goes by, or evictions alone where kvpress is not
            installed.
    """
    coding = [
        Peer(coder.name, method, coder) for method, made in CODERS.items() for coder in made()
    ]
    evicting = [Evicting(one.name, one.curve, one) for one in evictions()]
    for name in names:
        if any(one.goes_by(name) for one in coding):
            continue
        if not any(one.goes_by(name) for one in evicting):
            known = ", ".join(dict.fromkeys((*CODERS, *(one.eviction.method for one in evicting))))
            raise ConfigurationError(
                f"peer {name}: no published method goes by it; there are {known}"
            )
        if not scores.available():
            raise ConfigurationError(f"peer {name}: {scores.ABSENT}")
    if names:
        return [one for one in (*coding, *evicting) if any(map(one.goes_by, names))]
    return [*coding, *(one for one in evicting if one.eviction.method in USUAL)]


def choose_peers(
    settings: EvalSettings,
    tokenizer: Any,
    geometry: Geometry,
    first: Source,
    peers: Sequence[Published],
) -> tuple[tuple[Published, ...], tuple[tuple[int, ...], ...], str]:
    """Peers that fit, the texts they learn from, and what the report says of them.

    Args:
        settings: the run.
        tokenizer: of the model.
        geometry: of its cache.
        first: of the sources: what it has to spare is learned from where no other text is given.
        peers: those that can run, see `load_peers` and `choose_evictions`.

    Raises:
        ConfigurationError: peers asked for by name do not fit the model, or `peer_text` cannot be
            read.
        InvalidInput: there is nothing to learn from.
    """
    given = settings.peer_text
    unused = "" if given is None else f" Nothing learned from {given.name}."
    if not settings.peers:
        return (), (), f"Published methods were not asked for (--no-peers).{unused}"
    if not peers:
        return (), (), f"No published method could run.{unused}"
    if geometry.rope is None:
        if settings.peer:
            raise ConfigurationError(f"peer {settings.peer[0]}: needs a model with RoPE")
        return (), (), f"Published methods were left out: they need a model with RoPE.{unused}"
    note = (
        f"Published methods that were asked for ({', '.join(settings.peer)}) take part in every "
        "section but times."
        if settings.peer
        else "Published methods take part in quality against bytes alone; --peer NAME has one take "
        "part in every section but times."
    )
    evicting = dict.fromkeys(peer.method for peer in peers if isinstance(peer, Evicting))
    if evicting:
        note += (
            f" Those that evict ({', '.join(evicting)}) take part in quality against bytes alone "
            "in any case, as what they leave of a cache does not come back as pages."
        )
    if not any(peer.coder.learns for peer in peers if isinstance(peer, Peer)):
        return tuple(peers), (), f"{note}{unused}"
    if given is not None:
        text = read_text(given)
        training = training_texts(given.name, text, tokenizer, settings.prefix, TRAINING_TEXTS)
        where = given.name
    else:
        training = first.spare[:TRAINING_TEXTS]
        where = f"parts of {first.name} that are not judged"
    if not training:
        raise InvalidInput(
            f"text {first.name}: leaves nothing for the published methods to learn from: give "
            "--peer-text or --no-peers, or ask for fewer --texts"
        )
    note = f"{note} Those that learn did so on {len(training)} texts: {where}."
    return tuple(peers), training, note


def calibrate(peers: Sequence[Peer], training: Sequence[Prefix]) -> dict[str, str]:
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


def prefix_of(states: Tensor, importance: Tensor, tokens: slice, rope: Rope) -> Prefix:
    """The part of a cache that peers are given.

    Args:
        states: `[layers, 2, kv_heads, tokens, head_dim]`.
        importance: `[layers, tokens]`, see `importance_of`.
        tokens: which of them.
        rope: of the model.
    """
    part = states[:, :, :, tokens].transpose(2, 3).half().float().cpu()
    positions = torch.arange(tokens.start, tokens.stop)
    return Prefix(part[:, 0], part[:, 1], positions, rope, importance[:, tokens].cpu())


@torch.inference_mode()
def importance_of(model: Any, ids: Sequence[int], known: Tensor | None = None) -> Tensor:
    """`[layers, tokens]`: mean attention that each token gets from those that can see it.

    Only eager attention shows its weights: this is another forward pass.

    Args:
        model: the model.
        ids: tokens of the cache.
        known: states of the leading tokens, which are not run again: what is found of these is too
            little, as their own attention is missing.
    """
    cache = cache_of(known)
    start = 0 if known is None else known.shape[3]
    parts = []
    former = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        for at in range(start, len(ids), _QUERIES):
            tokens = torch.tensor([list(ids[at : at + _QUERIES])], device=model.device)
            seen = model(
                tokens,
                **cache_inputs(model, cache),
                use_cache=True,
                logits_to_keep=1,
                output_attentions=True,
            ).attentions
            part = torch.stack([layer[0].mean(0).sum(0) for layer in seen])
            parts.append(pad(part, (0, len(ids) - part.shape[1])))
    finally:
        model.set_attn_implementation(former)
    later = torch.arange(len(ids), 0, -1, device=model.device)  # itself included
    return torch.stack(parts).sum(0) / later


def training_prefix(model: Any, ids: Sequence[int], rope: Rope) -> Prefix:
    """One text for `calibrate`, which looks at no importance: it is zero."""
    cache = cache_of()
    forward(model, ids, cache, 1)
    states, tokens = states_of(cache), slice(SINK_TOKENS, len(ids))
    return prefix_of(states, torch.zeros(len(states), len(ids)), tokens, rope)
