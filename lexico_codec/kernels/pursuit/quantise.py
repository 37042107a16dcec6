"""Coefficients as FP8 E4M3 under one power of two a vector, so that outliers do not saturate."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lexico_proto.errors import NonFiniteCache

LEAST_EXPONENT: Final = -120
"""Least exponent that `to_e4m3` gives: that of the largest float32."""

_LARGEST_MANTISSA = 0.875
"""448 = 0.875 * 2^9 is the largest E4M3 number: larger mantissas take one exponent less."""


def to_e4m3(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 codes of coefficients.

    A row is multiplied by the power of two that brings its largest magnitude into (224, 448], then
    rounded to the nearest E4M3 number. Being a power of two, the scale loses nothing, and all rows
    use the same part of the range.

    Args:
        coefficients: `[vectors, s]`, float32, finite.

    Returns:
        `(codes, exponents)`: uint8 `[vectors, s]` holding E4M3 bits, int8 `[vectors]` with
        `coefficient ~ E4M3(code) * 2^-exponent`.

    Raises:
        NonFiniteCache: one is NaN or infinite. torch's cast makes what is beyond E4M3 its largest
            number or NaN, by its version; neither is the coefficient.
    """
    largest = coefficients.abs().amax(dim=1) if coefficients.shape[1] else coefficients.sum(dim=1)
    if not bool(largest.isfinite().all()):
        raise NonFiniteCache("coefficients: NaN, infinity or beyond float32")
    mantissa, power = torch.frexp(largest)
    exponents = torch.where(mantissa <= _LARGEST_MANTISSA, 9 - power, 8 - power)
    exponents = torch.where(largest > 0, exponents, 0).clamp(-128, 127).to(torch.int32)
    scaled = torch.ldexp(coefficients, exponents[:, None])
    codes = scaled.to(torch.float8_e4m3fn).view(torch.uint8)
    return codes, exponents.to(torch.int8)


def from_e4m3(codes: Tensor, exponents: Tensor) -> Tensor:
    """Coefficients from FP8 codes: float32 `[vectors, s]`, the inverse of `to_e4m3` to rounding.

    Always finite where no code is NaN and no exponent is under `LEAST_EXPONENT`.
    """
    values = codes.view(torch.float8_e4m3fn).to(torch.float32)
    most = torch.finfo(torch.float32).max  # a coefficient near it may round up to infinity
    return torch.ldexp(values, -exponents.to(torch.int32)[:, None]).clamp_(-most, most)
