"""TurboQuant for least squared error (Zandieh et al., arXiv 2504.19874, algorithm 1).

A head's vector is divided by its norm, turned by a random rotation, and each coordinate becomes the
index of the nearest centroid of the Lloyd-Max codebook for the coordinates of a random point on the
sphere (lemma 1). Index and norm, in float16, are stored; rotation and codebook all prefixes share.

At fractional widths the channels are split into outliers and the rest, each an instance of its own
(rotation, codebook and norm), the outliers one bit wider. The paper's example is 32 of 128 channels
at 3 bits and 96 at 2, which it calls 2.5 bits but is 2.25. Both readings are here: a quarter of the
channels (2.25, 3.25), and half of them, which gives the width that the paper names (2.5, 3.5).

What the paper leaves open, and what is done here:
- whether rotations differ between layers and heads: one for all, keys and values too;
- how outliers are found: the channels of largest energy over the prefix, in each layer and head, of
  keys and of values; their bitmap is counted;
- which share of outliers makes its 3.5 bits: half, as for 2.5;
- keys with or without RoPE: with, as they lie in the cache;
- its variant for unbiased inner products, with QJL on the residual, is not here.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexico_lab.published.coder import Coder, Prefix, Stored
from lexico_lab.published.per_token import as_float16, packed_size

SEED = 20250428
GRID = 1 << 16
MAX_FLOAT16 = torch.finfo(torch.float16).max


@cache
def rotation(dim: int, instance: int = 0) -> Tensor:
    """Random rotation `[dim, dim]`, float32: QR of a normal matrix, R's diagonal made positive."""
    generator = torch.Generator().manual_seed(SEED + instance)
    normal = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    turn: Tensor = q * r.diagonal().sign()
    return turn.to(torch.float32)


@cache
def codebook(dim: int, bits: int) -> Tensor:
    """Centroids `[2 ** bits]` ascending, float32, of a coordinate of a unit vector `[dim]`.

    The density is proportional to (1 - x^2)^((dim - 3) / 2). Lloyd's iteration on its integrals:
    boundaries are midpoints of centroids, centroids the means between boundaries.

    Raises:
        ValueError: dim is below 3, where the density has no bound.
    """
    if dim < 3:
        raise ValueError(f"dim {dim}: no codebook below 3")
    x = np.linspace(-1.0, 1.0, GRID + 1)
    density = (1 - x * x) ** ((dim - 3) / 2)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)]) * (x[1] - x[0])
    count = 2**bits
    centroids = np.interp((np.arange(count) + 0.5) / count, mass / mass[-1], x)
    while True:
        edges = np.concatenate([[-1.0], (centroids[1:] + centroids[:-1]) / 2, [1.0]])
        moved = _moment(edges, dim) / np.diff(np.interp(edges, x, mass))
        moved = (moved - moved[::-1]) / 2  # as symmetric as the density
        if np.abs(moved - centroids).max() < 1e-9:
            return torch.from_numpy(moved).to(torch.float32)
        centroids = moved


def _moment(edges: NDArray[np.float64], dim: int) -> NDArray[np.float64]:
    """Integral of x times the density between edges."""
    return -np.diff((1 - edges * edges) ** ((dim - 1) / 2)) / (dim - 1)


def round_trip(x: Tensor, bits: int, instance: int = 0) -> tuple[Tensor, int]:
    """Vectors `[..., dim]` as they come back, and the bytes of their indices and norms."""
    dim = x.shape[-1]
    turn, centroids = rotation(dim, instance), codebook(dim, bits)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    unit = x / torch.where(norm == 0, 1, norm)
    index = torch.bucketize(unit @ turn.T, (centroids[1:] + centroids[:-1]) / 2)
    stored = norm.clamp(max=MAX_FLOAT16).to(torch.float16)
    back = (centroids[index] @ turn) * stored.to(torch.float32)
    return back, packed_size(index.numel(), bits) + 2 * stored.numel()


class TurboQuant(Coder):
    """TurboQuant at one width, whole or split."""

    def __init__(self, bits: int, outliers: float = 0.0) -> None:
        """`outliers`: share of channels of one more bit."""
        self.bits, self.outliers = bits, outliers
        self.name = f"TurboQuant {bits + outliers:g} bit"

    def code(self, prefix: Prefix) -> Stored:
        """Indices and norms, and where channels are split, bitmaps of the outliers."""
        keys, key_size = self._round_trip(prefix.keys)
        values, value_size = self._round_trip(prefix.values)
        return Stored(as_float16(keys), as_float16(values), key_size + value_size)

    def _round_trip(self, x: Tensor) -> tuple[Tensor, int]:
        layers, tokens, kv_heads, head_dim = x.shape
        wide = round(head_dim * self.outliers)
        if wide == 0:
            return round_trip(x, self.bits)
        energy = x.square().sum(dim=1, keepdim=True)  # [layers, 1, kv_heads, head_dim]
        order = energy.argsort(dim=-1, descending=True, stable=True)
        back, size = torch.empty_like(x), layers * kv_heads * packed_size(head_dim, 1)
        for instance, channels in enumerate(order.tensor_split((wide,), dim=-1)):
            # Ascending, as a bitmap tells them.
            index = channels.sort(dim=-1).values.expand(-1, tokens, -1, -1)
            part, part_size = round_trip(x.gather(-1, index), self.bits + 1 - instance, instance)
            back.scatter_(-1, index, part)
            size += part_size
        return back, size


def coders() -> list[Coder]:
    """Every setting worth plotting."""
    whole = [TurboQuant(bits) for bits in (1, 2, 3, 4)]
    return [*whole, *(TurboQuant(bits, share) for bits in (2, 3) for share in (0.25, 0.5))]
