"""Stand-in for SGLang's CPU kernels, of which there is no wheel: for tests on the CPU alone.

In PYTHONPATH it lets SGLang's CPU engine be imported on processors without AMX, for which the
kernels would not be used anyway. What is asked for and not here says so when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def assign_req_to_token_pool_cpu(
    rows: torch.Tensor,
    req_to_token: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    slots: torch.Tensor,
    stride: int | None = None,
) -> None:
    """Writes the slots of requests into their rows, one request after another."""
    done = 0
    for row, first, last in zip(rows.tolist(), start.tolist(), end.tolist(), strict=True):
        taken = slots[done : done + last - first]
        req_to_token[row, first:last] = taken.to(req_to_token.dtype)
        done += last - first


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> None:
        raise NotImplementedError(f"sgl_kernel.{name} is not in this stand-in")

    missing.__name__ = name
    return missing
