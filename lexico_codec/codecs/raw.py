"""raw: the tensor's own bytes. Lossless, and the control for every other codec."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lexico_codec.codecs.codec import Codec, Place
from lexico_codec.geometry import Geometry
from lexico_codec.memory import CacheMemory
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

    def _encode(
        self, source: CacheMemory, place: Place, dictionary: DictionarySet | None
    ) -> memoryview:
        """A view of the group's memory (of a copy, where it is elsewhere or not in one run)."""
        return bytes_of(source.read())

    def _decode(
        self,
        body: memoryview,
        place: Place,
        dictionary: DictionarySet | None,
        target: CacheMemory,
        shape: tuple[int, ...],
    ) -> None:
        """Copies the body, or what is wanted of it, bit for bit."""
        if len(body) != math.prod(shape) * target.dtype.itemsize:
            raise DamagedFrame(f"raw body of {len(body)} bytes for a group of {shape}")
        layers = target.layers
        target.write(tensor_from(body, target.dtype, shape)[layers.start : layers.stop])
