"""What a codec is: one file, one class, `encode` beside `decode`, one id for its bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, Final, Self

import torch
from torch import Tensor

from lexico_codec.canonical import canonical_json
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.memory import CacheMemory, source_of, target_of
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.tensors import FLOAT8, WIDE
from lexico_proto.errors import ConfigurationError

SINK_TOKENS: Final = 4
"""Leading tokens of a sequence that stay exact in every lossy codec: attention sinks (arXiv
2309.17453)."""


@dataclass(frozen=True)
class Place:
    """Where in a model and a sequence a layer group lies."""

    first_layer: int
    """Counted in the whole model: indexes the dictionary set."""
    first_token: int
    """Position in the sequence."""
    rope: Rope | None = None
    """How the model turned the keys; None for a model without rotary positions."""
    first_head: int = 0
    """Counted in the whole model: indexes the means of a dictionary set."""


@dataclass(frozen=True)
class Codec(ABC):
    """Turns a layer group into bytes and back.

    A codec's configuration is its dataclass fields, plain JSON values; it is part of the namespace.
    Bytes that change are a new codec, never a new meaning of an old id.
    """

    name: ClassVar[str]
    """Name by which users choose it."""
    codec_id: ClassVar[int]
    """Number in frame headers."""
    needs_dictionary: ClassVar[bool]
    set_of: ClassVar[str] = ""
    """Codec whose dictionary sets it takes; empty for its own."""
    lossless: ClassVar[bool] = False
    """Whether `decode` gives back every bit."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Parameters that came later than others. At their defaults, which mean what was before, a
    configuration does not hold them: pages keep their names."""

    def config_json(self) -> str:
        """Configuration as canonical JSON: sorted keys, no spaces."""
        usual = {field.name: field.default for field in fields(self) if field.name in self.later}
        config = asdict(self).items()
        return canonical_json({k: v for k, v in config if k not in usual or v != usual[k]})

    def check_geometry(self, geometry: Geometry) -> None:  # noqa: B027 - most codecs fit all
        """Refuses a cache that the codec, as it is configured, cannot code.

        Raises:
            ConfigurationError: naming the parameter.
        """

    def for_set(self, dictionary: DictionarySet, geometry: Geometry) -> Self:
        """The codec with what a set that serves it leaves no choice about: itself, mostly.

        Args:
            dictionary: the set.
            geometry: of the model.

        Raises:
            DictionaryMismatch: the codec is configured for another set.
        """
        return self

    def without_positions(self) -> Self:
        """The codec for pages whose position in a sequence is not known: itself, where it makes no
        use of that.

        Raises:
            ConfigurationError: it cannot do without.
        """
        if self.needs_dictionary:
            raise ConfigurationError(
                f"codec {self.name}: needs the position of each page, which is not known here; "
                "codec lexico-residual and its presets find it, lossless needs none"
            )
        return self

    def group_layers(self, geometry: Geometry) -> int | None:
        """Layers that must lie in one frame, or None where any number will do."""
        return None

    @abstractmethod
    def sink_tokens(self, first_token: int, tokens: int) -> int:
        """How many leading tokens of a page that starts at `first_token` are stored exact."""

    @abstractmethod
    def encoded_bytes(self, geometry: Geometry, tokens: int) -> int:
        """About how many bytes one layer of one page takes."""

    def encode(
        self, group: Tensor | CacheMemory, place: Place, dictionary: DictionarySet | None
    ) -> bytes | bytearray | memoryview:
        """The body of a frame.

        Args:
            group: all layers and KV heads of the group, finite; a tensor is
                `[layers, 2, tokens, kv_heads, head_dim]` of any strides, keys first.
            place: where the group lies.
            dictionary: the set that the spec names; None for a codec without one.

        Raises:
            ShapeMismatch: a tensor of another shape or type.
        """
        source = source_of(group)
        if self._widens(source):
            source = source_of(source.read().to(WIDE))
        return self._encode(source, place, dictionary)

    def decode(
        self,
        body: memoryview,
        place: Place,
        dictionary: DictionarySet | None,
        out: Tensor | CacheMemory,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Fills a caller's memory from a body, which is read whole before anything is written.

        Args:
            body: what `encode` gave, its checksum verified.
            place: where the group lies.
            dictionary: as for `encode`.
            out: the layers and heads that are wanted, and where they go; a tensor is a whole
                group, `[layers, 2, tokens, kv_heads, head_dim]`, of any strides, on any device.
            shape: of the group; None where `out` is all of it.

        Raises:
            DamagedFrame: the body is none that `encode` makes for this shape. Of what is not wanted
                a codec may look at lengths alone.
            ShapeMismatch: memory that holds no part of the group.
            InvalidInput: a tensor whose elements share memory.
        """
        target = target_of(out)
        whole = target.shape if shape is None else shape
        target.check(whole, target.dtype)
        if not target.layers:
            return
        if not self._widens(target):
            self._decode(body, place, dictionary, target, whole)
            return
        room = torch.empty(target.shape, dtype=WIDE, device=target.device)
        wide = CacheMemory.over(room, first_layer=target.first_layer, first_head=target.first_head)
        self._decode(body, place, dictionary, wide, whole)
        target.tables.fill(room)

    def _widens(self, memory: CacheMemory) -> bool:
        """Whether a cache is coded as one of 16 bits, which has all values of one of 8: what is
        lost is rounded, and kernels compute with what they know."""
        return not self.lossless and memory.dtype in FLOAT8

    @abstractmethod
    def _encode(
        self, source: CacheMemory, place: Place, dictionary: DictionarySet | None
    ) -> bytes | bytearray | memoryview:
        """`encode`, of a description."""

    @abstractmethod
    def _decode(
        self,
        body: memoryview,
        place: Place,
        dictionary: DictionarySet | None,
        target: CacheMemory,
        shape: tuple[int, ...],
    ) -> None:
        """`decode`, into a description that fits the shape."""


def leading_sinks(first_token: int, tokens: int, sinks: int = SINK_TOKENS) -> int:
    """Those of the first tokens of the sequence, usually four, that lie in a page."""
    return max(0, min(sinks - first_token, tokens))


def tables_of(layers: range) -> range:
    """Keys and values of layers, counted among the tables of a group."""
    return range(2 * layers.start, 2 * layers.stop)
