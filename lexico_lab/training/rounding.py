"""What storing makes of sparse codes, so that atoms are learned from the codes that come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from lexico_codec.codecs.packed.codec import PackedCodec
from lexico_codec.codecs.packed.coefficients import quantise
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes

Rounding = Callable[[Codes, Tensor, Tensor], Codes]
"""From plain codes, the vectors `[n, m]` and the atoms `[N, m]` to the codes as they come back."""


def as_lexico(codes: Codes, vectors: Tensor, atoms: Tensor) -> Codes:
    """As codec lexico stores them: E4M3 under a power of two a vector."""
    return codes.quantised().plain()


def as_packed(codes: Codes, vectors: Tensor, atoms: Tensor) -> Codes:
    """As codec lexico-packed stores them where no bits are named."""
    squares = vectors.square().sum(1)
    chosen = quantise(codes, Atoms.of(atoms), squares, PackedCodec().bits)
    return chosen.codes().to(vectors.device)


def in_steps(step: float) -> Rounding:
    """Coefficients to the nearest multiple of a step."""

    def rounded(codes: Codes, vectors: Tensor, atoms: Tensor) -> Codes:
        return replace(codes, coefficients=(codes.coefficients / step).round() * step)

    return rounded
