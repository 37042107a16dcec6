"""Dictionaries stacked in one table, checked once, with the forms that kernels want of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, TypeVar

import torch
from torch import Tensor

from lexico_codec.kernels.forms import Forms
from lexico_proto.errors import InvalidInput, ShapeMismatch

MAX_ATOMS: Final = 65536
"""Atoms a dictionary: an index fits two bytes."""
UNIT_NORM_SLACK: Final = 2e-3
"""On ||atom||²; rounding a unit vector to fp16 moves it by 1e-3 at most."""

Form = TypeVar("Form")


@dataclass(frozen=True, slots=True, eq=False)
class Atoms:
    """Dictionaries of one or more tables of vectors. Make one with `of`; it is not to be written
    to.
    """

    stack: Tensor
    """`[sum of N, m]` float32 or float64, contiguous; `narrow` leaves it whole."""
    starts: tuple[int, ...]
    """Row of `stack` where each dictionary begins, then the end of the last."""
    _forms: Forms = field(default_factory=Forms, repr=False)

    @classmethod
    def of(cls, stack: Tensor, starts: Sequence[int] | None = None) -> Atoms:
        """Dictionaries from their rows.

        Args:
            stack: `[sum of N, m]` float32 or float64, rows of unit norm within fp16 rounding.
            starts: the row where each dictionary begins and the end, or None for one dictionary.

        Raises:
            ShapeMismatch: another shape or dtype.
            InvalidInput: atoms that are not finite or not of unit norm, none, or too many.
        """
        if not isinstance(stack, Tensor) or stack.layout != torch.strided:
            raise ShapeMismatch("atoms: must be a dense tensor")
        if stack.ndim != 2 or stack.shape[1] == 0:
            raise ShapeMismatch(f"atoms: must be [N, m], not {list(stack.shape)}")
        if stack.dtype not in (torch.float32, torch.float64):
            raise ShapeMismatch(f"atoms: must be float32 or float64, not {stack.dtype}")
        bounds = (0, len(stack)) if starts is None else tuple(int(start) for start in starts)
        sizes = [end - start for start, end in pairwise(bounds)]
        if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != len(stack):
            raise InvalidInput("atoms: starts must run from 0 to the number of rows")
        if not all(1 <= size <= MAX_ATOMS for size in sizes):
            raise InvalidInput(f"atoms: a dictionary has 1..{MAX_ATOMS} atoms, not {sizes}")
        norms = (stack * stack).sum(1)
        if not bool(((norms - 1).abs() <= UNIT_NORM_SLACK).all()):  # NaN fails too
            raise InvalidInput("atoms: every row must be finite and of unit norm")
        return cls(stack.contiguous(), bounds)

    @property
    def m(self) -> int:
        """Components of an atom."""
        return self.stack.shape[1]

    @property
    def tables(self) -> int:
        """Number of dictionaries."""
        return len(self.starts) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Atoms in each dictionary."""
        return tuple(end - start for start, end in pairwise(self.starts))

    def dictionary(self, table: int) -> Tensor:
        """One dictionary, `[N, m]`, a view."""
        return self.stack[self.starts[table] : self.starts[table + 1]]

    def narrow(self, first: int, tables: int) -> Atoms:
        """Only some consecutive dictionaries; stack and forms are shared.

        Raises:
            InvalidInput: dictionaries that are not there.
        """
        if not 0 <= first <= first + tables <= self.tables or tables == 0:
            raise InvalidInput(f"atoms: no dictionaries {first}+{tables} among {self.tables}")
        if tables == self.tables:
            return self
        return replace(self, starts=self.starts[first : first + tables + 1])

    def form(self, name: Hashable, make: Callable[[], Form]) -> Form:
        """What `make` gives, made once under that name for all that share the stack.

        `make` may use `stack`; a form that depends on `starts` must have them in its name. A CUDA
        device is waited for, so that any stream may use the form.
        """
        form: Form = self._forms.once(name, make, self.stack.device)
        return form

    def starts_tensor(self) -> Tensor:
        """`starts` as int64 `[tables + 1]` on the device of the stack."""
        return self.form(
            ("starts", self.starts), lambda: torch.tensor(self.starts, device=self.stack.device)
        )
