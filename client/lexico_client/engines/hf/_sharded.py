"""Models of which each process holds a slice: tensor parallelism, and parameters that are split."""

from __future__ import annotations

import itertools
import sys
from typing import Any

from torch import Tensor, nn

from lexico_proto.errors import Unsupported


def ranks_of(model: nn.Module) -> int:
    """How many processes hold the model together; 1 for one that is whole here.

    Slices that someone cut by hand into plain tensors cannot be seen.
    """
    said = getattr(model, "_tp_size", None)
    ranks = said if isinstance(said, int) else 1
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if is_distributed(tensor):
            mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
            ranks = max(ranks, int(mesh.size()))
    return max(1, ranks)


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process."""
    if is_distributed(tensor):
        within: Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return within
    return tensor


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a `DTensor`. Does not import what nobody uses."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def refuse_slice(model: nn.Module, instead: str) -> None:
    """Raises where this process holds a slice of the model.

    Args:
        model: without wrappers.
        instead: what to do.

    Raises:
        Unsupported: it does.
    """
    ranks = ranks_of(model)
    if ranks > 1:
        raise Unsupported(f"{type(model).__name__} is split over {ranks} ranks: {instead}")
