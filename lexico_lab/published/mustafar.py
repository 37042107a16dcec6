"""Mustafar (arXiv 2505.22913): magnitude pruning of each token's vectors, bitmap, kept values.

As in the authors' code, the vector of one token and one head is pruned by itself, keys after RoPE
as they lie in the cache, keys and values by the same share. Stored: one bit an element, and the
kept values in float16. The authors' kernel also has an offset for every tile of 64 and pads the
values for coalesced reads (45 % of dense at 70 % sparsity); both serve the kernel, and a store
needs neither, since every vector keeps equally many: they are not counted.

The authors' threshold keeps one element more than the named share; we keep the share. They
combine it with KIVI's quantiser, which puts keys in groups of one channel and many tokens; what
that does where most of a channel's group is pruned is unknown to us. Here the kept values of a
vector form one group of 4-bit codes with a float16 scale and zero point, for keys and values
alike. The recent window, dense in the paper, is the harness's business.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lexico_lab.published.coder import Coder, Prefix, Stored

SPARSITIES: Final = (0.5, 0.7, 0.85)
"""Shares of elements that are pruned."""


def coders() -> list[Coder]:
    """Every sparsity, with float16 values and with 4-bit values."""
    return [Mustafar(sparsity, bits) for bits in (16, 4) for sparsity in SPARSITIES]


class Mustafar(Coder):
    """Pruning at a sparsity; kept values in 16 or 4 bits."""

    def __init__(self, sparsity: float, bits: int) -> None:
        if not 0 <= sparsity < 1 or bits not in (4, 16):
            raise ValueError(f"sparsity={sparsity} bits={bits}: sparsity in [0, 1), 4 or 16 bits")
        values = "fp16" if bits == 16 else f"{bits} bit"
        self.name = f"Mustafar {100 * sparsity:g} % {values}"
        self.sparsity = sparsity
        self.bits = bits

    def code(self, prefix: Prefix) -> Stored:
        keys, key_bytes = self._store(prefix.keys)
        values, value_bytes = self._store(prefix.values)
        return Stored(keys, values, key_bytes + value_bytes)

    def _store(self, dense: Tensor) -> tuple[Tensor, int]:
        """What is left of `[..., head_dim]`, and its bytes."""
        head_dim = dense.shape[-1]
        kept = head_dim - int(self.sparsity * head_dim)
        vectors = dense.reshape(-1, head_dim)
        # A stable sort, so that of equal magnitudes the first are kept, on every machine.
        order = vectors.abs().argsort(dim=1, descending=True, stable=True)
        places = order[:, :kept].sort(dim=1).values  # as a bitmap would give them back
        values, value_bytes = self._values(vectors.gather(1, places))
        pruned = torch.zeros_like(vectors).scatter_(1, places, values)
        bitmap_bytes = -(-vectors.numel() // 8)
        return pruned.reshape(dense.shape), bitmap_bytes + value_bytes

    def _values(self, kept: Tensor) -> tuple[Tensor, int]:
        """Kept values `[vectors, kept]` as they come back, and their bytes."""
        if self.bits == 16:
            return kept.half().float(), 2 * kept.numel()
        most = (1 << self.bits) - 1
        zero = kept.amin(dim=1, keepdim=True).half().float()
        scale = ((kept.amax(dim=1, keepdim=True) - zero) / most).half().float()
        codes = ((kept - zero) / torch.where(scale > 0, scale, 1)).round().clamp(0, most)
        return codes * scale + zero, -(-kept.numel() * self.bits // 8) + 4 * len(kept)
