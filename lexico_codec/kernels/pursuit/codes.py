"""What the kernels hand over: sparse codes of vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lexico_codec.kernels.pursuit.quantise import from_e4m3, to_e4m3


@dataclass(frozen=True, slots=True)
class Codes:
    """Sparse codes of B vectors; entries past a vector's count are index 0 and coefficient 0.

    Either plain, or quantised: then the types are those that a frame stores.
    """

    indices: Tensor
    """`[B, s]` int32, or int16 when quantised, in the order they were picked. They count within the
    vector's own dictionary."""
    coefficients: Tensor
    """`[B, s]` floating point, or uint8 holding E4M3 bits when quantised."""
    counts: Tensor
    """`[B]` int32, or uint8 when quantised: 0..s."""
    exponents: Tensor | None = None
    """None, or when quantised `[B]` int8: a coefficient is `E4M3(bits) * 2^-exponent`."""

    def to(self, device: torch.device | str) -> Codes:
        """The same codes on another device."""
        exponents = None if self.exponents is None else self.exponents.to(device)
        return Codes(
            self.indices.to(device),
            self.coefficients.to(device),
            self.counts.to(device),
            exponents,
        )

    def part(self, tables: range, heads: range, sizes: tuple[int, int, int]) -> Codes:
        """The codes of some tables and heads alone.

        Args:
            tables: consecutive. heads: consecutive.
            sizes: tables, tokens and heads of which these are the codes.
        """
        if (len(tables), len(heads)) == (sizes[0], sizes[2]):
            return self

        def taken(column: Tensor) -> Tensor:
            own = column.view(*sizes, *column.shape[1:])
            own = own[tables.start : tables.stop, :, heads.start : heads.stop]
            return own.reshape(-1, *column.shape[1:])

        return Codes(
            taken(self.indices),
            taken(self.coefficients),
            taken(self.counts),
            None if self.exponents is None else taken(self.exponents),
        )

    def quantised(self) -> Codes:
        """The codes as a frame stores them; N must be at most 32768.

        Raises:
            NonFiniteCache: a coefficient that is no number of float32.
        """
        if self.exponents is not None:
            return self
        coefficients, exponents = to_e4m3(self.coefficients.float())
        return Codes(
            self.indices.to(torch.int16), coefficients, self.counts.to(torch.uint8), exponents
        )

    def plain(self) -> Codes:
        """The codes with int32 indices and float32 coefficients."""
        if self.exponents is None:
            return self
        coefficients = from_e4m3(self.coefficients, self.exponents)
        return Codes(self.indices.to(torch.int32), coefficients, self.counts.to(torch.int32), None)
