"""Text that peers learn from: as many prefixes as fit into memory in float16."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import overload

from lexico_lab.published.coder import Prefix


class Training(Sequence[Prefix]):
    """Prefixes that are float16 where they lie, and float32 where they are asked for."""

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        """Takes them one by one: they need not be there all at once."""
        self._held = [replace(p, keys=p.keys.half(), values=p.values.half()) for p in prefixes]

    def __len__(self) -> int:
        return len(self._held)

    @overload
    def __getitem__(self, index: int) -> Prefix: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prefix]: ...
    def __getitem__(self, index: int | slice) -> Prefix | list[Prefix]:
        if isinstance(index, slice):
            return [_wide(prefix) for prefix in self._held[index]]
        return _wide(self._held[index])

    def __iter__(self) -> Iterator[Prefix]:
        return map(_wide, self._held)


def _wide(prefix: Prefix) -> Prefix:
    return replace(prefix, keys=prefix.keys.float(), values=prefix.values.float())
