"""Where the streams of an entropy coded body lie; `coder` says what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lexico_codec.kernels.entropy.tables import LANES, Tables
from lexico_proto.errors import DamagedFrame


@dataclass(frozen=True, slots=True, eq=False)
class Streams:
    """An entropy coded body, and what its values are of."""

    body: npt.NDArray[np.uint8]
    begins: npt.NDArray[np.int64]
    """Of each stream in the body, and the end after the last."""
    classes: Tensor
    """`[components]` int16."""
    offsets: Tensor
    """`[tokens]` int8."""
    tables: Tables

    @classmethod
    def of(cls, body: bytes | memoryview, classes: Tensor, offsets: Tensor, tables: Tables) -> Self:
        """As `coder.decode` takes it.

        Raises:
            DamagedFrame: streams of wrong lengths.
        """
        return cls(*split(body, len(offsets)), classes, offsets, tables)

    @property
    def tokens(self) -> int:
        """How many the body has."""
        return len(self.offsets)


def split(
    body: bytes | memoryview, tokens: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The bytes of a body, and `[blocks + 1]` where its streams begin, the end after them.

    Every stream has room for its states, a whole number of words follows, and none is left over.

    Raises:
        DamagedFrame: anything else.
    """
    blocks = -(-tokens // LANES)
    data = np.frombuffer(body, np.uint8)
    if len(data) < 4 * blocks + 4 * tokens:  # before anything is made whose size tokens set
        raise DamagedFrame("entropy coded body: shorter than its states")
    begins = np.empty(blocks + 1, np.int64)
    begins[0] = 4 * blocks
    lengths = data[: 4 * blocks].view("<u4").astype(np.int64)
    np.cumsum(lengths, out=begins[1:])
    begins[1:] += 4 * blocks
    least = np.full(blocks, 4 * LANES)
    least[-1:] = 4 * (tokens - LANES * (blocks - 1))
    if begins[-1] != len(data) or (lengths < least).any() or (lengths % 2).any():
        raise DamagedFrame("entropy coded body: streams of wrong lengths")
    return data, begins
