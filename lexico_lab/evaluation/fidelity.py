"""What storing a prefix does to its cache and to the predictions after it."""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from torch import Tensor

from lexico_codec.codecs.codec import SINK_TOKENS
from lexico_lab.caches import cache_of, divergence, forward, negative_log_likelihood
from lexico_lab.evaluation.prefixes import ExactText
from lexico_lab.evaluation.shelf import FrameShelf, Shelf
from lexico_lab.evaluation.ways import Way


class LayerErrors(TypedDict):
    """Squared error over squared norm of each layer's vectors that are no sinks."""

    keys: list[float]
    values: list[float]


class Quality(TypedDict):
    """Predictions on what is left of one text. Nats, mean over the continuation."""

    bytes: int
    kl: float
    nll: float
    nll_exact: float


class Fidelity(Quality):
    """One text stored one way, and what comes back of it."""

    kl_keys: float
    """With the keys as they come back and exact values."""
    kl_values: float
    layers: LayerErrors


def through_frames(exact: ExactText, way: Way, coded: int) -> tuple[Tensor, FrameShelf]:
    """The prefix's states over a codec of ours, and the frames they lay in: see `through_shelf`."""
    shelf = FrameShelf(way)
    return through_shelf(exact, shelf, coded), shelf


def through_shelf(exact: ExactText, shelf: Shelf, coded: int) -> Tensor:
    """The prefix's states as a node would reload them.

    Args:
        exact: the text.
        shelf: an empty one.
        coded: leading tokens that are stored, whole pages; the rest stays exact.
    """
    shelf.store(exact.ids[:coded], exact.states)
    states = shelf.reload(exact.ids[:coded], exact.states.dtype, exact.states.device)
    return torch.cat([states, exact.states[:, :, :, coded:]], dim=3)


def predicted(model: Any, exact: ExactText, states: Tensor) -> Tensor:
    """Predictions of the continuation, as `exact.predictions`, on other states of the prefix."""
    return forward(model, exact.following, cache_of(states), len(exact.following))


@torch.inference_mode()
def judge(model: Any, exact: ExactText, made: Tensor, size: int, coded: int) -> Fidelity:
    """Compares what came back with what was there.

    Args:
        model: the model.
        exact: the text.
        made: as `exact.states`.
        size: bytes that it took.
        coded: leading tokens that were stored.
    """
    keys, values = exact.states.clone(), exact.states.clone()
    keys[:, 0], values[:, 1] = made[:, 0], made[:, 1]
    return {
        **compare(exact, predicted(model, exact, made), size),
        "kl_keys": divergence(exact.predictions, predicted(model, exact, keys)),
        "kl_values": divergence(exact.predictions, predicted(model, exact, values)),
        "layers": layer_errors(exact.states[:, :, :, :coded], made[:, :, :, :coded]),
    }


def compare(exact: ExactText, made: Tensor, size: int) -> Quality:
    """Compares predictions with those after the exact cache.

    Args:
        exact: the text.
        made: as `exact.predictions`.
        size: bytes that the cache took on which they were made.
    """
    targets = exact.following[1:]
    return {
        "bytes": size,
        "kl": divergence(exact.predictions, made),
        "nll": negative_log_likelihood(made, targets),
        "nll_exact": negative_log_likelihood(exact.predictions, targets),
    }


def layer_errors(exact: Tensor, made: Tensor) -> LayerErrors:
    """Of states, `[layers, 2, kv_heads, tokens, head_dim]`."""
    exact, made = (x[:, :, :, SINK_TOKENS:].double().flatten(2) for x in (exact, made))
    relative = (made - exact).square().sum(2) / exact.square().sum(2).clamp_min(1e-30)
    keys, values = relative.T.tolist()
    return {"keys": keys, "values": values}
