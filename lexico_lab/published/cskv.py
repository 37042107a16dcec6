"""CSKV (arXiv 2409.10593)-like: a few principal channels of each layer, in float16 or 4 bits.

The paper writes the key and value projections of a layer as a product of two thin matrices and
caches what lies between them: r channels a token instead of all heads' channels, for keys before
RoPE. It starts from an (activation-aware) SVD of the weights and trains both matrices, layer by
layer, on the error of the keys and values; for 4 bits it trains with the quantiser in the loop.
Its text was not at hand, only its abstract and summaries.

Ours trains nothing: keys and values of training text go through a PCA without mean (the paper's
product has no bias either), per layer, all heads together. That is the least squared error that
any two such matrices can reach on the training text, so what the paper's training would add at 16
bits is little (were its loss another norm, the solution would be another); the training for
4 bits has no counterpart here, and its gain is missing. Unlike the paper, which has the token's
hidden state, we project the cache itself, which gives the same channels up to that error.

4-bit codes: one channel and 32 neighbouring tokens share a float16 scale and zero point (5 bits a
coefficient); the paper's grouping, after KIVI, may put values in groups along channels instead.
Keys and values have equal ranks; the paper also splits unevenly. Its window of exact recent
tokens is the harness's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import torch
from torch import Tensor

from lexico_lab.published.coder import Coder, Prefix, Stored

_TOKENS: Final = 32
"""Tokens of a group that shares scale and zero point."""
_BITS: Final = 4


def coders() -> list[Coder]:
    """Ranks as shares of a layer's channels, in 4 bits and in float16; one calibration for all."""
    shares = {
        4: (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0),
        16: (1 / 16, 1 / 8, 3 / 16, 1 / 4, 1 / 3),
    }
    shared = Calibration()
    return [Cskv(share, bits, shared) for bits in shares for share in shares[bits]]


@dataclass(eq=False)
class Calibration:
    """What coders of all ranks learn: principal channels of keys and of values."""

    vectors: list[Tensor] = field(default_factory=list)
    """`[layers, channels, channels]` float32, by falling variance."""
    _training: Sequence[Prefix] | None = None

    def learn(self, training: Sequence[Prefix]) -> None:
        """Learns, unless it has learned from this very text already."""
        if self._training is training:
            return
        grams: list[Tensor] = []
        for prefix in training:
            for side, rows in enumerate(_rows(prefix)):
                gram = (rows.transpose(1, 2) @ rows).double()
                if len(grams) == side:
                    grams.append(gram)
                else:
                    grams[side] += gram
        self.vectors = [torch.linalg.eigh(gram).eigenvectors.flip(2).float() for gram in grams]
        self._training = training


class Cskv(Coder):
    """Low rank per layer, at a share of the channels."""

    learns = 150

    def __init__(self, share: float, bits: int, shared: Calibration | None = None) -> None:
        """Args:
        share: rank over channels (kv_heads * head_dim) of a layer.
        bits: of a coefficient, 4 or 16.
        shared: what coders of several ranks learn together.
        """
        if not 0 < share <= 1 or bits not in (4, 16):
            raise ValueError(f"share={share} bits={bits}: share in (0, 1], 4 or 16 bits")
        coefficients = "fp16" if bits == 16 else f"{bits} bit"
        self.name = f"CSKV rank {100 * share:.3g} % {coefficients}"
        self.share = share
        self.bits = bits
        self._shared = shared or Calibration()
        self._bases: list[Tensor] = []

    def calibrate(self, training: Sequence[Prefix]) -> Self:
        self._shared.learn(training)
        channels = self._shared.vectors[0].shape[2]
        rank = max(1, round(self.share * channels))
        self._bases = [side[:, :, :rank].contiguous() for side in self._shared.vectors]
        return self

    def code(self, prefix: Prefix) -> Stored:
        if not self._bases:
            raise RuntimeError("calibrate first")
        parts, size = [], 0
        for rows, basis in zip(_rows(prefix), self._bases, strict=True):
            coefficients, count = self._store(rows @ basis)
            parts.append((coefficients @ basis.transpose(1, 2)).reshape(prefix.keys.shape))
            size += count
        return Stored(prefix.rotated(parts[0]), parts[1], size)

    def _store(self, coefficients: Tensor) -> tuple[Tensor, int]:
        """Coefficients `[layers, tokens, rank]` as they come back, and their bytes."""
        if self.bits == 16:
            return coefficients.half().float(), 2 * coefficients.numel()
        groups = [_quantise(group) for group in torch.split(coefficients, _TOKENS, dim=1)]
        scales = 2 * 2 * len(groups) * coefficients.shape[0] * coefficients.shape[2]
        return torch.cat(groups, dim=1), -(-coefficients.numel() * _BITS // 8) + scales


def _quantise(group: Tensor) -> Tensor:
    """`[layers, tokens, rank]` by way of codes, one scale and zero point a layer and channel."""
    most = (1 << _BITS) - 1
    zero = group.amin(dim=1, keepdim=True).half().float()
    scale = ((group.amax(dim=1, keepdim=True) - zero) / most).half().float()
    codes = ((group - zero) / torch.where(scale > 0, scale, 1)).round().clamp(0, most)
    return codes * scale + zero


def _rows(prefix: Prefix) -> tuple[Tensor, Tensor]:
    """Un-rotated keys, and values, each `[layers, tokens, kv_heads * head_dim]`."""
    return prefix.unrotated_keys().flatten(2), prefix.values.flatten(2)
