"""LMCache's objects, read by their attributes: nothing here imports LMCache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from lexico_proto.errors import Unsupported


class MemoryObj(Protocol):
    """A chunk of tokens in LMCache's memory."""

    @property
    def tensor(self) -> Tensor | None: ...
    def get_shapes(self) -> Sequence[Sequence[int]]: ...


def whole_tensor(memory: MemoryObj) -> Tensor:
    """The tensor that an object is.

    Raises:
        Unsupported: it is several, or none any more.
    """
    tensor = memory.tensor if len(memory.get_shapes()) == 1 else None
    if tensor is None:
        raise Unsupported(
            f"an object of {len(memory.get_shapes())} tensors: only models whose layers all have "
            "full attention and caches of one shape are covered"
        )
    return tensor
