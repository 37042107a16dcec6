"""Sparse coding of vectors over a dictionary: the two functions that every codec calls.

`encode` picks atoms, `reconstruct` adds them up again. Both take tensors on any device that has a
kernel here; the naive twin in `naive` is the oracle of each kernel and serves every device that has
none.
"""

from __future__ import annotations

from torch import Tensor

from lexico_codec.kernels import naive
from lexico_codec.kernels.naive import Codes

__all__ = ["Codes", "encode", "reconstruct"]


def encode(vectors: Tensor, atoms: Tensor, sparsity: int, tolerance: float | None = None) -> Codes:
    """Codes each vector as a sum of at most `sparsity` atoms (orthogonal matching pursuit).

    Args:
        vectors: `[B, m]` float32 or float64, finite. atoms: `[N, m]` of the same dtype and device,
        rows of unit norm within fp16 rounding. sparsity: most atoms a vector, 1..min(m, N, 255).
        tolerance: stop a vector once `||x - x̂|| <= tolerance * ||x||`; None codes to `sparsity`
        atoms.

    Returns:
        `Codes` on the device of `vectors`.

    Raises:
        ShapeMismatch, NonFiniteCache, InvalidInput: see `naive.omp`.
    """
    return naive.omp(vectors, atoms, sparsity, tolerance)


def reconstruct(codes: Codes, atoms: Tensor) -> Tensor:
    """The vectors `[B, m]` that the codes stand for, in the dtype of `atoms`.

    Raises:
        ShapeMismatch, InvalidInput: see `naive.reconstruct`.
    """
    return naive.reconstruct(codes, atoms)
