"""Numbers of golden inputs: integer arithmetic, no library's random ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def integers(seed: int) -> Iterator[int]:
    """Numbers in 0..2^15-1: the linear congruential generator of the C standard's example."""
    state = seed
    while True:
        state = (1103515245 * state + 12345) % (1 << 31)
        yield state >> 16


def tensor_of(shape: tuple[int, ...], seed: int) -> Tensor:
    """Multiples of 1/128 in -8..8, exact in float16 and float32."""
    source = integers(seed)
    size = torch.Size(shape).numel()
    values = [(next(source) % 2048 - 1024) / 128 for _ in range(size)]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def sign_atoms(atoms: int, seed: int) -> Tensor:
    """Rows of ±1/4, 16 wide: their norm is exactly one."""
    source = integers(seed)
    signs = [0.25 if next(source) % 2 else -0.25 for _ in range(atoms * 16)]
    return torch.tensor(signs).reshape(atoms, 16)


def hadamard(size: int) -> Tensor:
    """Sylvester's matrix of a power of two: orthogonal but for its scale."""
    made = torch.ones(1, 1)
    while len(made) < size:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
    return made
