"""Memory of a batch of prompts that are loaded one by one, each to where its padding ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache, StaticLayer

from lexico_client._load import PageView, Target
from lexico_client.engines.hf._prefix import roomy_cache
from lexico_client.engines.hf._room_layer import Room
from lexico_codec.geometry import Geometry
from lexico_codec.memory import CacheMemory
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import Busy, ShapeMismatch, Unsupported

SHORT_OF_MEMORY: Final = (MemoryError, torch.OutOfMemoryError)
"""A batch's memory is taken at once, with room behind it, and pages that are offloaded of a static
cache are copied: without a service there may be enough."""


def short_of_memory(error: Exception) -> Busy:
    """What is told of it."""
    busy = Busy("no memory for sharing the caches of this batch")
    busy.__cause__ = error
    return busy


def refuse_uncounted() -> None:
    """
    Raises:
        Unsupported: a static cache of this transformers does not count its tokens.
    """
    if not isinstance(getattr(StaticLayer(max_cache_len=1), "cumulative_length", None), Tensor):
        raise Unsupported(
            "this transformers counts the tokens of a static cache by what is not zero, which "
            "padding and codecs defy: install a newer one (5.24 counts, 5.12 does not), or leave "
            "cache_implementation out"
        )


class BatchMemory:
    """Keys and values of a batch, as a `DynamicCache` holds them, with room behind the prompts."""

    def __init__(
        self, geometry: Geometry, config: Any, rows: int, capacity: int, device: torch.device
    ) -> None:
        """
        Args:
            geometry: of the model.
            config: of the model.
            rows: prompts.
            capacity: columns: those of the prompts, and of what is computed behind them.
            device: of the model.
        """
        self._geometry = geometry
        self._config = config
        self._shape = rows, capacity
        self._device = device
        self.keys, self.values = self._allocate()

    def _allocate(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of each layer, `[rows, kv_heads, capacity, head_dim]`."""
        g, (rows, capacity) = self._geometry, self._shape
        shape = (g.layers, 2, rows, g.kv_heads, capacity, g.head_dim)
        memory = torch.empty(shape, dtype=g.torch_dtype, device=self._device)
        return list(memory[:, 0]), list(memory[:, 1])

    def clear(self, pads: Sequence[int]) -> None:
        """Writes zeros as padding: nobody attends to it, but NaN would still count."""
        for part in (*self.keys, *self.values):
            for row, pad in enumerate(pads):
                part[row, :, :pad] = 0
        if self._device.type == "cuda":  # pages are written by another thread
            torch.cuda.current_stream(self._device).synchronize()

    def target(self, spec: CacheSpec, row: int, pad: int) -> Target:
        """Where the pages of a prompt, of that spec, go: behind so many columns of padding."""
        memory = CacheMemory.of(
            [part[row].transpose(0, 1) for part in self.keys],
            [part[row].transpose(0, 1) for part in self.values],
        )

        def view(page: int, group: int) -> CacheMemory:
            first = pad + page * spec.page_tokens
            return memory.at(spec.page_tokens, first_slot=first).within(spec.group_range(group))

        def allocate(pages: int) -> PageView:
            return view

        return allocate

    def moved(self, ready: Sequence[int]) -> BatchMemory:
        """The same in new memory, for when a thread that is stuck may still write to this one.

        Args:
            ready: leading columns of each row that are taken along.
        """
        made = type(self)(self._geometry, self._config, *self._shape, self._device)
        for mine, other in zip((*self.keys, *self.values), (*made.keys, *made.values), strict=True):
            for row, columns in enumerate(ready):
                other[row, :, :columns] = mine[row, :, :columns]
        return made

    def row(self, row: int, pad: int, tokens: int) -> DynamicCache:
        """One prompt's cache, whose first tokens are there: what it grows by goes into this memory,
        behind them."""
        cache = roomy_cache(self._config)
        layers: list[Any] = cache.layers
        for layer, keys, values in zip(layers, self.keys, self.values, strict=True):
            layer.move_in(
                Room(keys[row : row + 1, :, pad:], values[row : row + 1, :, pad:], tokens)
            )
        return cache

    def keep(self, cache: Cache, row: int, pad: int, tokens: int) -> None:
        """Takes what a prompt's cache has grown by. It is here already, unless `torch.compile` or
        autograd had the layers join it elsewhere.

        Args:
            cache: of `row`.
            row, pad: as for `row`.
            tokens: that it holds now.

        Raises:
            ShapeMismatch: it holds something else.
        """
        layers: list[Any] = cache.layers
        for layer, keys, values in zip(layers, self.keys, self.values, strict=True):
            for made, whole in ((layer.keys, keys), (layer.values, values)):
                place = whole[row : row + 1, :, pad : pad + tokens]
                if (made.shape, made.dtype) != (place.shape, place.dtype):
                    raise ShapeMismatch(
                        f"the model made keys or values {tuple(made.shape)} of {made.dtype}, needs "
                        f"{tuple(place.shape)} of {place.dtype}"
                    )
                if (made.data_ptr(), made.stride()) != (place.data_ptr(), place.stride()):
                    place.copy_(made)

    def cache(self, columns: int) -> Cache:
        """The cache of the batch, that holds its first columns. It is the memory: made once."""
        cache = roomy_cache(self._config)
        layers: list[Any] = cache.layers
        for layer, keys, values in zip(layers, self.keys, self.values, strict=True):
            layer.move_in(Room(keys, values, columns))
        return cache


class StaticBatchMemory(BatchMemory):
    """As `BatchMemory`, in the memory of a `StaticCache`."""

    def _allocate(self) -> tuple[list[Tensor], list[Tensor]]:
        g, (rows, capacity) = self._geometry, self._shape
        self._static = StaticCache(config=self._config, max_cache_len=capacity)
        layers: list[Any] = self._static.layers
        for layer in layers:
            if type(layer) is not StaticLayer:
                raise Unsupported(f"cache layer {type(layer).__name__}: only full attention")
        self._static.early_initialization(rows, g.kv_heads, g.head_dim, g.torch_dtype, self._device)
        return [layer.keys for layer in layers], [layer.values for layer in layers]

    def cache(self, columns: int) -> Cache:
        """As of `BatchMemory`."""
        layers: list[Any] = self._static.layers
        for layer in layers:
            layer.cumulative_length.fill_(columns)
        return self._static
