"""The static tables of the entropy coder, and the numbers that its streams are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from lexico_codec.kernels.forms import Forms
from lexico_proto.errors import InvalidInput, ShapeMismatch

LANES: Final = 32
"""Tokens whose words are interleaved; blocks of so many are decoded side by side."""
SYMBOLS: Final = 32
"""-15..15, then the escape."""
MIDDLE: Final = 15
"""Symbol of the value 0, and the largest value with a symbol of its own."""
ESCAPE: Final = 31
BITS: Final = 12
TOTAL: Final = 1 << BITS
"""What frequencies of a class add up to."""
LEAST: Final = 1 << 16
"""Least state; where encoding begins and decoding ends."""
MAX_SHIFT: Final = 12
MAX_CLASSES: Final = 1024
"""A class takes 16 KiB of the decoder's memory."""
LEVEL_LIMIT: Final = (1 << 30) - 1
"""The largest value either way."""


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """How the values of each of E classes are coded; not to be written to.

    Raises:
        ShapeMismatch: another shape or dtype, or not in the CPU's memory.
        InvalidInput: numbers out of range.
    """

    frequencies: Tensor
    """`[E, 32]` int32 or uint16: of each symbol, 4096 in all. The escape's is at least 1, and what
    has none is escaped."""
    shifts: Tensor
    """`[E]` uint8: low bits that are stored as they are, 0..12."""
    points: Tensor
    """`[E, 16]` float32: what the magnitudes 0..15 stand for in units of the step, where the shift
    is 0; a value of 0 is 0 whatever they say."""
    _forms: Forms = field(default_factory=Forms, init=False, repr=False)

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises what the class says it raises."""
        classes = self.frequencies.shape[0] if self.frequencies.ndim else 0
        check_tensor(
            self.frequencies, (torch.int32, torch.uint16), (classes, SYMBOLS), "frequencies"
        )
        check_tensor(self.shifts, (torch.uint8,), (classes,), "shifts")
        check_tensor(self.points, (torch.float32,), (classes, MIDDLE + 1), "points")
        if not 1 <= classes <= MAX_CLASSES:
            raise InvalidInput(f"tables: 1..{MAX_CLASSES} classes, not {classes}")
        counted = self.frequencies.to(torch.int64)
        sound = bool((counted >= 0).all()) and bool((counted[:, -1:] > 0).all())
        if not sound or bool((counted.sum(1) != TOTAL).any()):
            raise InvalidInput(f"frequencies: {TOTAL} in all in each class, some for the escape")
        if bool((self.shifts > MAX_SHIFT).any()):
            raise InvalidInput(f"shifts: 0..{MAX_SHIFT}")
        if not bool(self.points.isfinite().all()):
            raise InvalidInput("points: must be finite")

    @property
    def classes(self) -> int:
        """E."""
        return len(self.shifts)

    def slots(self) -> Tensor:
        """`[E, 4096]` int32: of each slot the symbol, its frequency << 5 and its place << 17."""

        def make() -> Tensor:
            counted = self.frequencies.to(torch.int64)
            starts = counted.cumsum(1) - counted
            symbols = torch.arange(SYMBOLS).expand_as(counted).flatten()
            symbols = symbols.repeat_interleave(counted.flatten()).view(-1, TOTAL)
            places = torch.arange(TOTAL) - starts.gather(1, symbols)
            return (symbols | counted.gather(1, symbols) << 5 | places << 17).to(torch.int32)

        return self.form("slots", make)

    def starts(self) -> Tensor:
        """`[E, 33]` int16: the first slot of each symbol, then 4096."""

        def make() -> Tensor:
            ends = self.frequencies.to(torch.int64).cumsum(1)
            return torch.cat([torch.zeros_like(ends[:, :1]), ends], 1).to(torch.int16)

        return self.form("starts", make)

    def values(self) -> Tensor:
        """`[E, 32]` float32: what symbols of classes without raw bits stand for."""

        def make() -> Tensor:
            middle = torch.zeros(self.classes, 1)
            larger = self.points[:, 1:]
            return torch.cat([-larger.flip(1), middle, larger, middle], 1)

        return self.form("values", make)

    def form(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, made once under that name."""
        form: Tensor = self._forms.once(name, lambda: make().contiguous())
        return form


def check_tensor(
    tensor: Tensor, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...], name: str
) -> None:
    """Refuses a tensor of another dtype or shape, -1 being any length, or not on the CPU.

    Raises:
        ShapeMismatch: naming the tensor.
    """
    if tensor.dtype not in dtypes or tensor.device.type != "cpu":
        raise ShapeMismatch(f"{name}: must be {' or '.join(map(str, dtypes))}, on the CPU")
    fits = tensor.ndim == len(shape) and all(
        wanted in (-1, length) for wanted, length in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise ShapeMismatch(f"{name}: must be {list(shape)}, not {list(tensor.shape)}")
