"""Which kernel serves a call: by device, said once in the log, and forced where somebody asks."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from typing import Final, Literal

import torch

from lexico_codec.kernels import library
from lexico_proto.errors import ConfigurationError

Kernel = Literal["triton", "compiled", "naive"]
KERNELS: Final[tuple[Kernel, ...]] = ("triton", "compiled", "naive")
"""Fastest first."""

KERNEL_VARIABLE: Final = "LEXICO_KERNEL"
"""Environment variable that forces a kernel for every call of the process."""
TRITON_MAX_SPARSITY: Final = 64
TRITON_MAX_DIM: Final = 256
TRITON_LEAST_CAPABILITY: Final = (8, 0)

_log = logging.getLogger(__name__)


def choose(
    operation: str,
    device: torch.device,
    dtype: torch.dtype,
    m: int,
    sparsity: int,
    kernel: str | None,
) -> Kernel:
    """The kernel for a call.

    CUDA devices get Triton, the CPU the compiled library, and whatever those do not cover (float64,
    other devices, long codes, an install without compiler) the naive twin.

    Args:
        operation: "encode", "reconstruct" or "attend": for the log, and for what has no kernel.
        device, dtype: of the vectors. m: their components. sparsity: atoms a vector.
        kernel: a forced choice, or None for `LEXICO_KERNEL` and then the usual one.

    Raises:
        ConfigurationError: a forced kernel that is unknown or cannot serve the call.
    """
    forced = kernel or os.environ.get(KERNEL_VARIABLE) or None
    if forced is not None and forced not in KERNELS:
        raise ConfigurationError(f"kernel {forced!r}: must be one of {', '.join(KERNELS)}")
    preferred: Kernel = "triton" if device.type == "cuda" else "compiled"
    why = "usual"
    for name in KERNELS:
        if forced is not None and name != forced:
            continue
        lack = _lacks(name, operation, device, dtype, m, sparsity, forced=forced is not None)
        if lack is None:
            _announce(operation, device.type, name, "forced" if forced else why)
            return name
        if forced is not None:
            raise ConfigurationError(f"kernel {name} cannot serve {operation}: {lack}")
        if name == preferred:
            why = lack
    raise ConfigurationError(f"no kernel can serve {operation}")  # not reached: naive always can


def choose_on_cpu(operation: str, kernel: str | None) -> Kernel:
    """As `choose`, for what works in the CPU's memory: a process that is forced to Triton, which
    has nothing there, gets the usual kernel.
    """
    forced = kernel or os.environ.get(KERNEL_VARIABLE) or None
    if forced == "triton" and kernel is None:
        forced = "compiled" if library.available() else "naive"
    return choose(operation, torch.device("cpu"), torch.float32, 1, 1, forced)


def _lacks(
    name: Kernel,
    operation: str,
    device: torch.device,
    dtype: torch.dtype,
    m: int,
    sparsity: int,
    *,
    forced: bool,
) -> str | None:
    """Why a kernel cannot serve, or None."""
    if name == "naive":
        return None
    if dtype == torch.float64:
        return "float64"
    if name == "compiled":
        if operation == "attend":
            return "attention has no compiled kernel"
        if device.type != "cpu":
            return f"device {device.type}"
        if m > library.MAX_DIM:
            return f"over {library.MAX_DIM} components"
        return None if library.available() else "the library was not built, or does not load"
    if not _has_triton():
        return "triton is not installed"
    if device.type == "cuda":
        if torch.version.hip is not None:
            return "ROCm: the kernels hold PTX"
        if torch.cuda.get_device_capability(device) < TRITON_LEAST_CAPABILITY:
            return "compute capability under 8.0"
    if sparsity > TRITON_MAX_SPARSITY or m > TRITON_MAX_DIM:
        return f"over {TRITON_MAX_SPARSITY} atoms or {TRITON_MAX_DIM} components"
    # Its interpreter runs on the CPU, for tests: they ask for it by name.
    interpreted = forced and os.environ.get("TRITON_INTERPRET") == "1"
    return None if device.type == "cuda" or interpreted else f"device {device.type}"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _announce(operation: str, device: str, chosen: str, why: str) -> None:
    isa = f" isa={library.isa()}" if chosen == "compiled" else ""
    _log.info("operation=%s device=%s kernel=%s%s why=%s", operation, device, chosen, isa, why)
