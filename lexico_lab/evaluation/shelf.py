"""What a store would hold of a conversation, kept in memory: real frames, for codecs of ours."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group, encode_group
from lexico_lab.evaluation.ways import Way


class Shelf(ABC):
    """What is stored of one conversation, and what reloading it gives."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of all that is stored."""

    @abstractmethod
    def store(self, ids: Sequence[int], states: Tensor) -> int:
        """Codes the full pages that are not there yet; those that are stay as they are.

        Args:
            ids: tokens of the cache.
            states: as `caches.states_of` gives them, of these tokens or more.

        Returns:
            Pages newly stored.
        """

    @abstractmethod
    def reload(self, ids: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The leading pages of a prompt that are there.

        Returns:
            `[layers, 2, kv_heads, tokens, head_dim]` of the model's dtype; no tokens for a miss.
        """


OpenShelf = Callable[[], Shelf]
"""Opens an empty one."""


class FrameShelf(Shelf):
    """Pages of one codec, as the service would hold them."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._frames: dict[bytes, list[bytes]] = {}
        self.encode_s = 0.0
        """Seconds spent in encoding."""
        self.decode_s = 0.0

    @property
    def size(self) -> int:
        return sum(len(frame) for frames in self._frames.values() for frame in frames)

    def store(self, ids: Sequence[int], states: Tensor) -> int:
        spec, dictionary = self._way.spec, self._way.dictionary
        missing = [
            (page, key)
            for page, key in enumerate(page_keys(spec, list(ids)))
            if key not in self._frames
        ]
        for page, key in missing:
            tokens = slice(page * spec.page_tokens, (page + 1) * spec.page_tokens)
            frames = []
            for group in range(spec.groups):
                layers = spec.group_range(group)
                part = states[layers.start : layers.stop, :, :, tokens].transpose(2, 3)
                source = part.to(spec.geometry.torch_dtype).contiguous()
                started = time.perf_counter()
                frame = encode_group(spec, key, page, group, source, dictionary)
                self.encode_s += time.perf_counter() - started
                frames.append(bytes(frame))
            self._frames[key] = frames
        return len(missing)

    def reload(self, ids: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        spec, geometry = self._way.spec, self._way.spec.geometry
        found: list[tuple[bytes, list[bytes]]] = []
        for key in page_keys(spec, list(ids)):
            frames = self._frames.get(key)
            if frames is None:
                break
            found.append((key, frames))
        made = torch.empty(
            (
                geometry.layers,
                2,
                geometry.kv_heads,
                len(found) * spec.page_tokens,
                geometry.head_dim,
            ),
            dtype=geometry.torch_dtype,
            device=device,
        )
        started = time.perf_counter()
        for page, (key, frames) in enumerate(found):
            tokens = slice(page * spec.page_tokens, (page + 1) * spec.page_tokens)
            for group, frame in enumerate(frames):
                layers = spec.group_range(group)
                out = made[layers.start : layers.stop, :, :, tokens].transpose(2, 3)
                decode_group(spec, key, page, group, frame, out, self._way.dictionary)
        self.decode_s += time.perf_counter() - started
        return made.to(dtype)
