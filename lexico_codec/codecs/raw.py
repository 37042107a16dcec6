"""raw: the tensor's own bytes. Lossless, and the control for every other codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lexico_codec.codecs.codec import Codec, Place
from lexico_codec.geometry import Geometry
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.tensors import bytes_of, tensor_from
from lexico_proto.errors import DamagedFrame


@dataclass(frozen=True)
class RawCodec(Codec):
    """Body: the group, C-contiguous, little-endian."""

    name: ClassVar[str] = "raw"
    codec_id: ClassVar[int] = 1
    needs_dictionary: ClassVar[bool] = False
    lossless: ClassVar[bool] = True

    def sink_tokens(self, first_token: int, tokens: int) -> int:
        """None apart: every token is exact."""
        return 0

    def encoded_bytes(self, geometry: Geometry, tokens: int) -> int:
        """Exactly the bytes of a layer."""
        return tokens * geometry.token_bytes // geometry.layers

    def encode(self, group: Tensor, place: Place, dictionary: DictionarySet | None) -> memoryview:
        """A view of the group's memory (of a copy, where it is on another device)."""
        return bytes_of(group)

    def decode(
        self, body: memoryview, place: Place, dictionary: DictionarySet | None, out: Tensor
    ) -> None:
        """Copies the body into `out`, bit for bit."""
        if len(body) != out.numel() * out.element_size():
            raise DamagedFrame(f"raw body of {len(body)} bytes for a group of {tuple(out.shape)}")
        with torch.no_grad():
            out.copy_(tensor_from(body, out.dtype, tuple(out.shape)))
