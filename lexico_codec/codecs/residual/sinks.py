"""Attention sinks, known by what they look like where no page knows that it has the first tokens.

Attention that a head has no use for goes to the first token, and to few others if to any: it must
read nothing there, so that values are far shorter than those of other tokens, in nearly every
layer. Measured on SmolLM2-135M: about a quarter of the length that is usual in the page. Coded like
the others that token costs several times the KL of all others. The three behind it, which are
stored exactly where positions are known, cost little.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

SHORT: Final = 0.5
"""Length over that of the page's median token below which values are those of a sink."""


def sinks_among(values: Tensor) -> Tensor:
    """Which tokens of a page are attention sinks, `[tokens]` bool on the CPU.

    Args:
        values: `[layers, tokens, heads, head_dim]`, floating point.
    """
    lengths = values.float().flatten(2).norm(dim=2)  # [layers, tokens]
    usual = lengths.median(1, keepdim=True).values
    shares = torch.where(usual > 0, lengths / usual, torch.ones_like(lengths))
    return (shares.median(0).values < SHORT).cpu()
