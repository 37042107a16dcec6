"""What a body of lexico-residual tells before its levels: a run of bits, see docs/format.md."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lexico_codec.bitpack import pack, packed_bytes, unpack
from lexico_codec.codecs.residual.energies import bands_stored, spread
from lexico_codec.sets.transform import ENERGIES, GAINS, Transform
from lexico_proto.errors import DamagedFrame

_GAIN_BITS: Final = 4
_ENERGY_BITS: Final = 3


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """Of some tokens."""

    exact: Tensor
    """`[tokens]` bool: those that are stored as they are, their components 0."""
    gains: Tensor
    """`[tokens]` int8 in `GAINS`: of each token's step."""
    energies: Tensor
    """`[tokens]` int8 in `ENERGIES`."""
    bands: Tensor
    """`[bands stored]` int8 in `ENERGIES`."""
    indices: Tensor
    """`[tokens, s]` int64: each token's atoms."""

    @property
    def offsets(self) -> Tensor:
        """`[tokens]` int8: what is added to the classes of a token's values."""
        return self.gains + self.energies

    def classes(self, transform: Transform, run: int, step: float) -> Tensor:
        """Classes of coefficients and components in this page, `[s + C]` int16."""
        usual, s = transform.classes(run, step), transform.sparsity
        return usual + spread(self.bands, len(usual) - s, behind=s)

    def pack(self, transform: Transform) -> bytes:
        """The run of bits."""
        numbers = [
            self.exact.numpy().astype(np.int64),
            self.gains.numpy().astype(np.int64) - GAINS[0],
            self.energies.numpy().astype(np.int64) - ENERGIES[0],
            self.bands.numpy().astype(np.int64) - ENERGIES[0],
            self.indices.flatten().numpy(),
        ]
        widths = _widths(transform, len(self.gains), len(self.bands))
        return pack(np.concatenate(numbers).astype(np.uint64), widths)

    @classmethod
    def unpack(cls, body: memoryview, transform: Transform, bands: int, tokens: int) -> Self:
        """The header of a body that has `header_bytes` or more.

        Raises:
            DamagedFrame: an index outside the atoms, or bits behind the last one.
        """
        widths = _widths(transform, tokens, bands)
        size = packed_bytes(int(widths.sum()))
        spare = -int(widths.sum()) % 8
        if spare and body[size - 1] >> (8 - spare):
            raise DamagedFrame("residual body: bits behind the last index")
        numbers = unpack(body, widths).astype(np.int64)  # in numpy: torch takes longer to call
        ends = np.cumsum([tokens, tokens, tokens, bands])
        exact, gains, energies, of_bands, indices = np.split(numbers, ends)
        if bool((indices >= max(1, transform.atoms.shape[1])).any()):
            raise DamagedFrame("residual body: an index outside the atoms")
        return cls(
            torch.from_numpy(exact.astype(np.bool_)),
            torch.from_numpy((gains + GAINS[0]).astype(np.int8)),
            torch.from_numpy((energies + ENERGIES[0]).astype(np.int8)),
            torch.from_numpy((of_bands + ENERGIES[0]).astype(np.int8)),
            torch.from_numpy(indices.reshape(tokens, transform.sparsity)),
        )


def bands_of(transform: Transform, run: int, step: float) -> int:
    """Bands whose energy a header holds at a step."""
    stored: int = transform.known(
        "bands stored", run, step, lambda: bands_stored(transform.deviations[run], step)
    )
    return stored


def header_bytes(transform: Transform, bands: int, tokens: int) -> int:
    """Bytes of a header."""
    return packed_bytes(int(_widths(transform, tokens, bands).sum()))


def _widths(transform: Transform, tokens: int, bands: int) -> npt.NDArray[np.int64]:
    return _widths_of(transform.atoms.shape[1], transform.sparsity, tokens, bands)


@lru_cache(64)
def _widths_of(atoms: int, sparsity: int, tokens: int, bands: int) -> npt.NDArray[np.int64]:
    widths = [1, _GAIN_BITS, _ENERGY_BITS, _ENERGY_BITS, max(0, atoms - 1).bit_length()]
    found = np.repeat(widths, [tokens, tokens, tokens, bands, tokens * sparsity])
    found.flags.writeable = False
    return found
