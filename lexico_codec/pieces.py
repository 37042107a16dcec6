"""The bytes of a page that came in pieces, read as one run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from lexico_proto.errors import InvalidInput

Piece = npt.NDArray[np.uint8]
"""A flat run of bytes, read-only by convention."""


class Pieces:
    """Several buffers that stand for one run of bytes.

    Buffers that lie one behind another in memory, as those of one object in Ray's shared memory do
    where their lengths are multiples of 64, are read through one view. Others are joined by a copy
    of the bytes asked for.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        """
        Args:
            pieces: in their order. They must not change.
        """
        self._pieces = pieces
        self._ends = list(accumulate(map(len, pieces)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def cut(self, start: int, end: int) -> memoryview:
        """Bytes `start` to `end`, a view where memory allows it.

        Raises:
            InvalidInput: there are no such bytes.
        """
        if not 0 <= start < end <= len(self):
            raise InvalidInput(f"bytes {start} to {end} of {len(self)}")
        parts = []
        at = bisect_right(self._ends, start)
        while start < end:
            piece = self._pieces[at]
            first = self._ends[at] - len(piece)
            stop = min(end, self._ends[at])
            if stop > start:  # else an empty piece
                parts.append(piece[start - first : stop - first])
            start, at = stop, at + 1
        if len(parts) == 1:
            return parts[0].data
        if all(_address(a) + len(a) == _address(b) for a, b in pairwise(parts)):
            return np.asarray(_Adjacent(parts)).data
        return np.concatenate(parts).data


class _Adjacent:
    """Buffers without a gap between them, as one array, which keeps each of them alive."""

    def __init__(self, parts: Sequence[Piece]) -> None:
        self._parts = parts
        self.__array_interface__ = {
            "data": (_address(parts[0]), True),
            "shape": (sum(map(len, parts)),),
            "typestr": "|u1",
            "version": 3,
        }


def _address(piece: Piece) -> int:
    return int(piece.__array_interface__["data"][0])
