"""Eviction: every KV head keeps some tokens of a prefix and drops the rest. Scores are kvpress's.

A prompt cache that many prompts share is evicted before any question is known, so scores see the
prefix alone. The first tokens (sinks) and the tail are never evicted and nothing is merged. A
dropped token leaves a hole: kept keys stay rotated where they stood, what follows the prefix stands
at its true position. This is no `Coder`, as the model goes on with a shorter cache: see
`short_caches`.

Scores come from `scores`. How many tokens each head keeps:
- one count for all heads: StreamingLLM, Knorm, KeyDiff, TOVA, SnapKV, Expected Attention and
  Compactor (arXiv 2309.17453, 2406.11430, 2504.15364, 2401.06104, 2404.14469, 2510.00636,
  2507.08143). KeyDiff's blockwise passes are left out, as in kvpress.
- PyramidKV (arXiv 2406.02069): SnapKV's scores, linearly fewer tokens from the first layer to the
  last, by the rule of the authors' code as kvpress cites it. kvpress itself falls back to one count
  where the last layer would keep less than the window: at this length, for all shares below half.
- Ada-SnapKV (AdaKV, arXiv 2407.11550): SnapKV's scores compared over the heads of a layer, a fifth
  of the even share safe in each head.
- KVzip (arXiv 2505.23416): the most attention a token gets while the model repeats the prefix,
  compared over all heads of all layers.

Observation windows are the harness's tail, which is kept anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lexico_lab.published.titles import EVICTIONS

USUAL: Final = ("snapkv", "pyramidkv", "compactor", "kvzip")
"""Methods that run where none is named."""
FRACTIONS: Final = (0.35, 0.9)
CODED_FRACTIONS: Final = (0.75,)
KVZIP_FRACTIONS: Final = (0.1, 0.2, 0.35, 0.5)
"""KVzip does with a fifth what the others do not with nine tenths."""
KVZIP_CODED_FRACTIONS: Final = (0.1, 0.35)
CODER: Final = "lexico s=8"
"""What codes the tokens that are kept, as studies name it."""
SAFE_SHARE: Final = 0.2  # alpha of AdaKV
PYRAMID_STEEPNESS: Final = 20  # beta of PyramidKV


@dataclass(frozen=True)
class Eviction:
    """One method at one setting."""

    method: str
    """Of `lexico_lab.published.titles.EVICTIONS`."""
    fraction: float
    """Share of the stored tokens that are kept, sinks among them; the mean over heads."""
    coded: bool = False
    """Whether what is kept but the sinks is coded with lexico afterwards."""

    @property
    def curve(self) -> str:
        """Settings of one method make one curve."""
        return f"{self.method} + lexico" if self.coded else self.method

    @property
    def name(self) -> str:
        """Method and setting, as reports show it."""
        coded = f" + {CODER}" if self.coded else ""
        return f"{EVICTIONS[self.method]}, {100 * self.fraction:.0f} % kept{coded}"

    def count(self, stored: slice) -> int:
        """Tokens a head keeps on average, beside the sinks before `stored`."""
        count: int = round(self.fraction * stored.stop) - stored.start
        return max(0, count)


def evictions() -> list[Eviction]:
    """Every setting worth plotting."""
    made = []
    for method in EVICTIONS:
        kvzip = method == "kvzip"
        plain = KVZIP_FRACTIONS if kvzip else FRACTIONS
        coded = KVZIP_CODED_FRACTIONS if kvzip else CODED_FRACTIONS
        made += [Eviction(method, share) for share in plain]
        made += [Eviction(method, share, True) for share in coded]
    return made


def select(scores: Tensor, method: str, count: int) -> Tensor:
    """What each head keeps.

    Args:
        scores: `[layers, kv_heads, tokens]`, of the tokens that may go; higher is kept.
        method: decides over what tokens' scores compete, see the module.
        count: tokens a head keeps on average.

    Returns:
        Bool, shaped as `scores`.
    """
    layers, heads, tokens = scores.shape
    count = min(count, tokens)
    if method == "kvzip":
        pools, counts = scores.reshape(1, -1), [layers * heads * count]
    elif method == "adakv":
        safe = scores.topk(int(SAFE_SHARE * count), dim=-1).indices
        pools = scores.scatter(-1, safe, torch.inf).flatten(1)
        counts = [heads * count] * layers
    else:
        pools = scores.flatten(0, 1)
        of_layers = pyramid(layers, count, tokens) if method == "pyramidkv" else [count] * layers
        counts = [layer for layer in of_layers for _ in range(heads)]
    kept = torch.zeros_like(pools, dtype=torch.bool)
    for pool, into, most in zip(pools, kept, counts, strict=True):
        into[pool.topk(most).indices] = True
    return kept.view(scores.shape)


def pyramid(layers: int, count: int, tokens: int) -> list[int]:
    """Tokens each layer keeps: a line from the most to the fewest with the mean `count`."""
    fewest = count / PYRAMID_STEEPNESS
    most = 2 * count - fewest
    if most > tokens:
        most, fewest = tokens, 2 * count - tokens
    step = (most - fewest) / (layers - 1) if layers > 1 else 0.0
    return [round(most - layer * step) for layer in range(layers)]
