"""Pages of an SGLang host pool, as memory of ours: no bytes are copied on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from lexico_codec.memory import CacheMemory
from lexico_codec.tensors import FLOAT8
from lexico_proto.errors import InvalidInput, ShapeMismatch, Unsupported

LAYOUTS: Final[Mapping[str, str]] = {
    "layer_first": "klpthd",
    "page_first": "kptlhd",
    "page_first_direct": "kplthd",
    "page_head": "kphtld",
}
"""Axes of a pool's buffer by SGLang's name of its layout: keys and values, layers, pages, tokens of
a page, heads, components. Pages and tokens that stand side by side are one axis there."""

_OURS: Final = "lkpthd"


class HostPages:
    """The keys and values of all layers, in pages."""

    def __init__(
        self, buffer: Tensor, layout: str, *, layers: int, page_tokens: int, heads: int, dim: int
    ) -> None:
        """
        Args:
            buffer: the pool's, of `layout`.
            layout: one of `LAYOUTS`.
            layers, page_tokens, heads, dim: what it has.

        Raises:
            Unsupported: a layout that is not known, or a buffer that has not its shape.
        """
        if layout not in LAYOUTS:
            raise Unsupported(
                f"hicache_mem_layout={layout}: not known; take one of {', '.join(LAYOUTS)}"
            )
        self._axes = LAYOUTS[layout]
        self._sizes = {"k": 2, "l": layers, "t": page_tokens, "h": heads, "d": dim}
        page = math.prod(self._sizes.values())
        pages = buffer.numel() // page
        shape = self._shape(pages)
        told = list(buffer.shape)
        if pages * page != buffer.numel() or told not in (shape, _merged(shape, self._axes)):
            raise Unsupported(
                f"a host pool of {told}: layout {layout} with {layers} layers, pages of "
                f"{page_tokens} tokens, and {heads} KV heads of {dim} has another shape"
            )
        nothing = torch.zeros(0, dtype=torch.int64, device=buffer.device)
        whole = self._permuted(buffer.view(shape))
        self._memory = CacheMemory.over(whole, 0, block_table=nothing)
        self._pages = pages
        self._page_tokens = page_tokens

    @classmethod
    def of(cls, pool: Any, dtype: torch.dtype | None = None) -> HostPages:
        """Of a `HostKVCache`.

        Args:
            pool: the pool.
            dtype: of keys and values, where the pool has them as bytes, of no type; None for its
                own.

        Raises:
            Unsupported: a pool of another kind.
        """
        buffer = getattr(pool, "kv_buffer", None)
        if not isinstance(buffer, Tensor):
            raise Unsupported(f"{type(pool).__name__}: a host pool without one buffer of KV")
        return cls(
            buffer if dtype is None else buffer.view(dtype),
            pool.layout,
            layers=pool.layer_num,
            page_tokens=pool.page_size,
            heads=pool.head_num,
            dim=pool.head_dim,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self._memory.dtype

    @property
    def page_numel(self) -> int:
        """Numbers of a page."""
        return math.prod(self._sizes.values())

    def page(self, slot: int) -> CacheMemory:
        """The memory of a page in the pool.

        Args:
            slot: of its first token.

        Raises:
            InvalidInput: no page begins there.
        """
        number, within = divmod(slot, self._page_tokens)
        if within or not 0 <= number < self._pages:
            raise InvalidInput(f"host index {slot}: no page of {self._page_tokens} begins there")
        table = torch.tensor([number], dtype=torch.int64, device=self._memory.device)
        return self._memory.at(self._page_tokens, table)

    def room(self) -> Tensor:
        """Memory for a page by itself, of the pool's type."""
        dtype = torch.uint8 if self.dtype in FLOAT8 else self.dtype
        return torch.empty(self.page_numel, dtype=dtype, device=self._memory.device)

    def pages(self, slots: Tensor, count: int) -> list[CacheMemory]:
        """The memory of pages, as the engine names them.

        Args:
            slots: of all their tokens, `[count * page_tokens]`.
            count: how many.

        Raises:
            InvalidInput: slots that are not those of whole pages.
        """
        size = self._page_tokens
        if slots.shape != (count * size,):
            raise InvalidInput(f"{list(slots.shape)} host indices for {count} pages of {size}")
        rows = slots.detach().to("cpu", torch.int64).view(count, size)
        if not torch.equal(rows, rows[:, :1] + torch.arange(size)):
            raise InvalidInput("host indices: the tokens of a page do not lie one after another")
        return [self.page(first) for first in rows[:, 0].tolist()]

    def flat(self, page: Tensor) -> CacheMemory:
        """The memory of a page that lies by itself, as the pool's `get_data_page` gives it.

        Raises:
            ShapeMismatch: another size or type.
        """
        if page.dtype == torch.uint8 and self.dtype in FLOAT8:
            page = page.view(self.dtype)
        if page.dtype != self.dtype or page.numel() != self.page_numel:
            raise ShapeMismatch(
                f"a page of {page.numel()} {page.dtype}: {self.page_numel} of {self.dtype} needed"
            )
        return CacheMemory.over(self._permuted(page.view(self._shape(1)))[:, :, 0])

    def _shape(self, pages: int) -> list[int]:
        return [pages if axis == "p" else self._sizes[axis] for axis in self._axes]

    def _permuted(self, buffer: Tensor) -> Tensor:
        return buffer.permute([self._axes.index(axis) for axis in _OURS])


def _merged(shape: list[int], axes: str) -> list[int]:
    """With pages and tokens as one axis, where they stand side by side."""
    at = axes.find("pt")
    return shape if at < 0 else [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]]
