"""A `DynamicCache` as pages, and pages as a `DynamicCache`. Nothing is copied that need not be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lexico_client._load import PageView
from lexico_codec.geometry import Geometry
from lexico_codec.memory import CacheMemory
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import InvalidInput, ShapeMismatch, Unsupported


class PrefixMemory:
    """Memory of a prefix that is being loaded: `[layers, 2, kv_heads, tokens, head_dim]`.

    Laid out as the layers of a `DynamicCache` are, so that they become views of it.
    """

    def __init__(self, spec: CacheSpec, device: torch.device) -> None:
        self._spec = spec
        self._device = device
        self._memory: Tensor | None = None

    def allocate(self, pages: int) -> PageView:
        """The views of that many pages: a `Target`."""
        spec, g = self._spec, self._spec.geometry
        shape = (g.layers, 2, g.kv_heads, pages * spec.page_tokens, g.head_dim)
        memory = torch.empty(shape, dtype=g.torch_dtype, device=self._device)
        self._memory = memory

        def view(page: int, group: int) -> Tensor:
            layers, first = spec.group_range(group), page * spec.page_tokens
            part = memory[layers.start : layers.stop, :, :, first : first + spec.page_tokens]
            return part.transpose(2, 3)

        return view

    def fill(self, cache: DynamicCache, tokens: int) -> None:
        """Puts the first `tokens` tokens into an empty cache, as views."""
        if self._memory is None or tokens == 0:
            return
        for layer, (keys, values) in zip(
            cache.layers, self._memory[:, :, None, :, :tokens].unbind(0), strict=True
        ):
            if not isinstance(layer, DynamicLayer):
                raise Unsupported(f"cache layer {type(layer).__name__}: only full attention")
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values


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
        others = {type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer}
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
