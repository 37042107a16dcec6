"""A cache of codes: the reloaded prefix stays compressed, and the newest tokens are exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from lexico_client.engines.hf._coded_layer import CodedCacheLayer
from lexico_proto.errors import Unsupported


class CodedCache(Cache):
    """A prompt cache that keeps the reloaded prefix as codes, and attends over them.

    `HuggingFaceCache.load_codes` makes it. It holds one sequence, for inference alone, and its
    model must run the attention implementation `lexico_codes`. New tokens are exact until the
    buffer overflows; then the oldest of them are coded as the prefix is. A deep copy shares the
    dictionaries alone: copies go on from one prefix in different ways.
    """

    def __init__(self, layers: Sequence[CodedCacheLayer]) -> None:
        super().__init__(layers=list(layers))

    @property
    def held_bytes(self) -> int:
        """Bytes of all layers' codes, sinks and buffers; dictionaries are shared by all caches."""
        return sum(layer.held_bytes for layer in self._coded_layers)

    @property
    def coded_tokens(self) -> int:
        """Tokens that are held as codes."""
        return self._coded_layers[0].coded_tokens

    @property
    def _whole(self) -> bool:
        """Whether all layers hold the same tokens."""
        layers = self._coded_layers
        lengths = {layer.get_seq_length() for layer in layers}
        return len(lengths) <= 1 and not any(layer.torn for layer in layers)

    @property
    def _coded_layers(self) -> list[CodedCacheLayer]:
        return [layer for layer in self.layers if isinstance(layer, CodedCacheLayer)]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As `CodedCacheLayer.update`.

        Raises:
            Unsupported: an earlier forward pass broke off between two layers, or within one.
        """
        if layer_idx == 0 and not self._whole:
            raise Unsupported(
                "a forward pass broke off half-way, so the layers of this CodedCache hold "
                "different tokens: load the prefix again"
            )
        return self._coded_layers[layer_idx].update(key_states, value_states, *args, **kwargs)

    def crop(self, tokens_to_remove: int) -> None:
        """As `CodedCacheLayer.crop`, in all layers or none."""
        for layer in self._coded_layers:
            layer.crop(tokens_to_remove)
