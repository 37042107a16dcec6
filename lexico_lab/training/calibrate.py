"""Finds the step at which a codec costs a model's predictions a given KL, on held-out windows.

A window's KL can be several times the mean: where names or numbers are to be repeated exactly. What
is promised is not the mean over these windows but over others like them, of which there may be few
as well: held to the target is what the mean over a dozen others is below about 9 times in 10, with
24 windows here. (A normal distribution has 19 in 20; KLs are skewed, and fewer windows know less.)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from lexico_codec.codecs.codec import SINK_TOKENS, Place
from lexico_codec.codecs.residual.codec import ResidualCodec
from lexico_codec.geometry import Geometry
from lexico_codec.sets.dictionary import TransformSet
from lexico_lab.caches import cache_of, divergence, forward, states_of
from lexico_lab.training.observe import EXACT_TOKENS, PROMPT_TOKENS
from lexico_proto.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TARGETS: Final = {"near": 0.005, "balanced": 0.02, "small": 0.05}
"""KL in nats that a quality stands for."""

_PAGE: Final = 64
_CLOSE: Final = 1.08  # a KL within this factor of its target will do
_TRIES: Final = 6
_ERRORS: Final = 1.645  # standard errors: the one-sided 95 % of a normal distribution
_OTHERS: Final = 12  # windows over which the promise is to hold


class Ruler:
    """Measures the KL of a step on windows whose uncompressed predictions it keeps."""

    def __init__(
        self, model: PreTrainedModel, geometry: Geometry, windows: Sequence[Sequence[int]]
    ) -> None:
        self._model, self._geometry = model, geometry
        self._windows = windows
        self._caches: list[Tensor] = []
        self._exact: list[Tensor] = []
        for ids in self._windows:
            states = self._prefill(ids)
            self._caches.append(states)
            self._exact.append(self._predict(ids, states))

    def bound(self, dictionary: TransformSet, step: float) -> float:
        """What the mean KL of a dozen continuations is mostly below, in nats: see `promised`."""
        layers = dictionary.transform.run_layers
        codec = ResidualCodec(step=step, run_layers=layers)
        found = []
        for ids, states, exact in zip(self._windows, self._caches, self._exact, strict=True):
            made = self._predict(ids, self._coded(states, codec, dictionary, layers))
            found.append(divergence(exact, made))
        return promised(found)

    def _coded(
        self, states: Tensor, codec: ResidualCodec, dictionary: TransformSet, layers: int
    ) -> Tensor:
        """`[layers, 2, tokens, heads, dim]` as it comes back, page by page."""
        made = states.clone()
        for first in range(0, PROMPT_TOKENS - EXACT_TOKENS, _PAGE):
            last = min(first + _PAGE, PROMPT_TOKENS - EXACT_TOKENS)
            for layer in range(0, len(states), layers):
                part = states[layer : layer + layers, :, first:last].contiguous()
                place = Place(layer, first, self._geometry.rope)
                body = codec.encode(part, place, dictionary)
                out = torch.empty_like(part)
                codec.decode(memoryview(body), place, dictionary, out)
                made[layer : layer + layers, :, first:last] = out
        made[:, :, :SINK_TOKENS] = states[:, :, :SINK_TOKENS]
        return made

    def _prefill(self, ids: Sequence[int]) -> Tensor:
        from transformers import DynamicCache

        cache = DynamicCache()
        forward(self._model, ids[:PROMPT_TOKENS], cache, 1)
        return states_of(cache).transpose(2, 3).half().contiguous().cpu()

    def _predict(self, ids: Sequence[int], states: Tensor) -> Tensor:
        wide = states.transpose(2, 3).to(self._model.device, self._model.dtype)
        following = ids[PROMPT_TOKENS:]
        return forward(self._model, following, cache_of(wide), len(following)).cpu()


def promised(values: Sequence[float]) -> float:
    """What the mean over a dozen others is mostly below; of one value, which says nothing, it is
    that one.

    Raises:
        InvalidInput: a KL that is not finite: the model gave NaN or infinity.
    """
    if not all(map(math.isfinite, values)):
        raise InvalidInput("calibrating: the model's predictions are not finite")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean
    return mean + _ERRORS * statistics.stdev(values) * math.sqrt(1 / len(values) + 1 / _OTHERS)


def step_for(target: float, guess: float, kl_of: Callable[[float], float]) -> float:
    """The step whose KL is the target, to 8 %: secants of the logarithms.

    KL grows about with the square of the step; a slope that noise bent is not trusted.
    """
    step, slope = guess, 1.5
    seen: list[tuple[float, float]] = []
    for _ in range(_TRIES):
        kl = max(kl_of(step), 1e-9)
        if target / _CLOSE <= kl <= target * _CLOSE:
            return step
        seen.append((math.log(step), math.log(kl)))
        if len(seen) > 1:
            (a, ka), (b, kb) = seen[-2:]
            slope = min(max((kb - ka) / (b - a) if b != a else slope, 0.7), 2.5)
        step = math.exp(seen[-1][0] + (math.log(target) - seen[-1][1]) / slope)
    near = min(seen, key=lambda point: abs(point[1] - math.log(target)))
    return math.exp(near[0])
