"""A `DynamicCache` as pages, and pages as a `DynamicCache`. Nothing is copied that need not be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lexico_client._load import PageView
from lexico_client.engines.hf._room_layer import Room, RoomLayer
from lexico_codec.geometry import Geometry
from lexico_codec.memory import CacheMemory
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import InvalidInput, ShapeMismatch, Unsupported

_COVERED: Final = (DynamicLayer, RoomLayer)


class PrefixMemory:
    """Memory of a prefix that is being loaded: `[layers, 2, kv_heads, tokens, head_dim]`.

    Laid out as the layers of a `DynamicCache` are, so that they become views of it. Behind the
    prefix is room for what the model computes.
    """

    def __init__(self, spec: CacheSpec, device: torch.device, tokens: int = 0) -> None:
        """
        Args:
            spec: of the pages.
            device: where they go.
            tokens: that there is to be memory for, the loaded ones among them.
        """
        self._spec = spec
        self._device = device
        self._tokens = tokens
        self._memory: Tensor | None = None

    def allocate(self, pages: int) -> PageView:
        """The views of that many pages: a `Target`."""
        spec, g = self._spec, self._spec.geometry
        tokens = max(pages * spec.page_tokens, self._tokens)
        shape = (g.layers, 2, g.kv_heads, tokens, g.head_dim)
        memory = torch.empty(shape, dtype=g.torch_dtype, device=self._device)
        self._memory = memory

        def view(page: int, group: int) -> Tensor:
            layers, first = spec.group_range(group), page * spec.page_tokens
            part = memory[layers.start : layers.stop, :, :, first : first + spec.page_tokens]
            return part.transpose(2, 3)

        return view

    def fill(self, cache: DynamicCache, tokens: int, *, room: bool = True) -> None:
        """Puts the first tokens into an empty cache, as views, and what is behind them as room.

        Args:
            cache: of `roomy_cache`.
            tokens: that were loaded.
            room: False where something may still write behind them: then it is left alone.
        """
        if self._memory is None or tokens == 0:
            return
        whole = self._memory if room else self._memory[:, :, :, :tokens]
        layers: list[Any] = cache.layers
        for layer, (keys, values) in zip(layers, whole[:, :, None].unbind(0), strict=True):
            layer.move_in(Room(keys, values, tokens))


def roomy_cache(config: Any) -> DynamicCache:
    """An empty cache that grows in place.

    Raises:
        Unsupported: a model that has layers of other kinds than full attention.
    """
    cache = DynamicCache(config=config)
    others = {type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer}
    if others:
        raise Unsupported(f"cache layers {', '.join(sorted(others))}: only full attention")
    cache.layers = [RoomLayer() for _ in cache.layers]
    return cache


@dataclass(frozen=True)
class CachedPrefix:
    """Keys and values of one sequence, as a model left them."""

    memory: CacheMemory | None
    """Of the whole sequence; None where the cache is empty."""
    tokens: int

    @classmethod
    def of(cls, cache: Any, geometry: Geometry) -> CachedPrefix:
        """What a cache holds, once it has proved to be what the geometry says.

        Raises:
            Unsupported: no `DynamicCache`, or layers other than full attention.
            ShapeMismatch: a batch, or another layer count, head count, head_dim, length or dtype.
        """
        layers = getattr(cache, "layers", None)
        if not isinstance(layers, list):
            raise Unsupported(f"{type(cache).__name__}: only a DynamicCache can be offloaded")
        others = {type(layer).__name__ for layer in layers if type(layer) not in _COVERED}
        if others:
            raise Unsupported(f"cache layers {', '.join(sorted(others))}: only full attention")
        filled = [layer for layer in layers if layer.is_initialized]
        if not filled:
            return cls(None, 0)
        if len(filled) != geometry.layers or len(layers) != geometry.layers:
            raise ShapeMismatch(f"a cache of {len(filled)} layers, needs {geometry.layers}")
        tokens = int(filled[0].get_seq_length())
        keys = [_checked(i, layer.keys, geometry, tokens) for i, layer in enumerate(filled)]
        values = [_checked(i, layer.values, geometry, tokens) for i, layer in enumerate(filled)]
        return cls(_memory_of(keys, values), tokens)

    @classmethod
    def of_row(
        cls, cache: Any, geometry: Geometry, row: int, first: int, tokens: int, *, copied: bool
    ) -> CachedPrefix:
        """One sequence of a batch.

        Args:
            cache: of full attention, dynamic or static.
            geometry: of the model.
            row: of the batch.
            first: column of the sequence's first token.
            tokens: of it, which the cache holds.
            copied: into memory of its own, for a cache that writes where it wrote before.

        Raises:
            ShapeMismatch: a cache of another geometry, or one that holds less.
        """
        if tokens == 0:
            return cls(None, 0)
        halves = []
        for half in ("keys", "values"):
            parts = [
                _checked(
                    index,
                    getattr(layer, half)[row : row + 1, :, first : first + tokens],
                    geometry,
                    tokens,
                )
                for index, layer in enumerate(cache.layers)
            ]
            halves.append([part.clone() for part in parts] if copied else parts)
        return cls(_memory_of(*halves), tokens)

    def read(self, spec: CacheSpec, page: int, group: int) -> CacheMemory:
        """Where one layer group of one page lies: a `PageSource`.

        Raises:
            ShapeMismatch: a page that the cache does not hold.
        """
        if self.memory is None:
            raise ShapeMismatch(f"page {page}: the cache is empty")
        layers = spec.group_range(group)
        return self.memory.at(spec.page_tokens, first_slot=page * spec.page_tokens).within(layers)

    def settle(self) -> None:
        """Waits for the kernels that fill the cache: it is read from another thread."""
        if self.memory is not None and self.memory.device.type == "cuda":
            torch.cuda.current_stream(self.memory.device).synchronize()


def _memory_of(keys: list[Tensor], values: list[Tensor]) -> CacheMemory:
    try:
        return CacheMemory.of(keys, values)
    except InvalidInput:  # layers that share memory are no harm where it is only read
        return CacheMemory.of([part.clone() for part in keys], [part.clone() for part in values])


def _checked(index: int, tensor: Tensor, geometry: Geometry, tokens: int) -> Tensor:
    """Keys or values of a layer as `[tokens, kv_heads, head_dim]`, a view."""
    if tensor.ndim == 4 and tensor.shape[0] != 1:
        raise ShapeMismatch(
            f"a cache of {tensor.shape[0]} sequences: offload one at a time, without padding"
        )
    expected = (1, geometry.kv_heads, tokens, geometry.head_dim)
    if tuple(tensor.shape) != expected or tensor.dtype != geometry.torch_dtype:
        raise ShapeMismatch(
            f"layer {index} is {tuple(tensor.shape)} of {tensor.dtype}, needs {expected} of "
            f"{geometry.torch_dtype}"
        )
    return tensor.detach()[0].transpose(0, 1)
