"""What a codec is: one file, one class, `encode` beside `decode`, one id for its bytes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from lexico_codec.geometry import Geometry, Rope
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import reconstruct_into
from lexico_codec.kernels.pursuit.preparation import Preparation
from lexico_codec.memory import CacheMemory, source_of, target_of
from lexico_codec.sets.dictionary import DictionarySet
from lexico_proto.errors import DictionaryMismatch, UnknownDictionary, Unsupported

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


@dataclass(frozen=True, slots=True, eq=False)
class GroupCodes:
    """A layer group as codes: what `decode` reconstructs, and attention over codes keeps."""

    sinks: Tensor
    """`[layers, 2, sinks, kv_heads, head_dim]`, exact: the first tokens of a sequence."""
    codes: Codes
    """Quantised, of `[2 * layers, tokens - sinks, kv_heads]` vectors, keys before values."""
    atoms: Atoms
    """The group's dictionaries, keys' before values' in each layer."""
    kv_heads: int


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
    has_codes: ClassVar[bool] = False
    """Whether `read` gives codes."""

    def config_json(self) -> str:
        """Configuration as canonical JSON: sorted keys, no spaces."""
        return json.dumps(self._config(), sort_keys=True, separators=(",", ":"))

    def _config(self) -> dict[str, Any]:
        return asdict(self)

    def check_geometry(self, geometry: Geometry) -> None:  # noqa: B027 - most codecs fit all
        """Refuses a cache that the codec, as it is configured, cannot code.

        Raises:
            ConfigurationError: naming the parameter.
        """

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
        return self._encode(source_of(group), place, dictionary)

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
        self._decode(body, place, dictionary, target, whole)

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

    def read(
        self,
        body: memoryview,
        place: Place,
        dictionary: DictionarySet | None,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> GroupCodes:
        """The group as codes, checked but not reconstructed: for attention over codes.

        A codec that has codes over a dictionary set says so in `has_codes` and overrides this.

        Args:
            body, place, dictionary: as for `decode`.
            shape: `(layers, 2, tokens, kv_heads, head_dim)` of the group.
            dtype: element type of the model's cache.
            device: where the codes go.

        Raises:
            Unsupported: the codec has no codes.
            DamagedFrame: the body is none that `encode` makes for this shape.
        """
        raise Unsupported(
            f"codec {self.name} keeps no codes: decode its pages into tensors, or use codec lexico"
        )

    def _stack_for(
        self,
        dictionary: DictionarySet | None,
        place: Place,
        layers: int,
        dim: int,
        device: torch.device,
    ) -> Atoms:
        """The dictionaries of a group, if the set is of the codec's kind and has them.

        Raises:
            UnknownDictionary: there is no set.
            DictionaryMismatch: a set of the other kind, of another head_dim, or without the layers.
        """
        if dictionary is None:
            raise UnknownDictionary(f"codec {self.name}: no dictionary set was given")
        if not dictionary.serves(self.name):
            kind = "of keys before RoPE" if dictionary.unrotated else "of keys as RoPE left them"
            if dictionary.family("residual") is not None:
                kind = "one with a transform"
            raise DictionaryMismatch(
                f"codec {self.name}: the dictionary set of {dictionary.info.model} is {kind}; "
                f"make one with `lexico train --codec {self.set_of or self.name}`"
            )
        end = place.first_layer + layers
        if dictionary.head_dim != dim or end > dictionary.layers:
            raise DictionaryMismatch(
                f"a dictionary set of {dictionary.layers} layers, head_dim {dictionary.head_dim} "
                f"for layers up to {end}, head_dim {dim}"
            )
        return dictionary.stack(place.first_layer, layers, device)


def leading_sinks(first_token: int, tokens: int) -> int:
    """Those of the first four tokens of the sequence that lie in a page."""
    return max(0, min(SINK_TOKENS - first_token, tokens))


def write_sums(
    target: CacheMemory,
    exact: Tensor,
    codes: Codes,
    atoms: Atoms,
    preparation: Preparation | None = None,
) -> None:
    """Fills a memory: the first tokens exact, the others as sums of atoms.

    Args:
        target: where to.
        exact: `[layers, 2, sinks, kv_heads, head_dim]` of the target's layers and all heads of the
            frame.
        codes: of the other tokens, of the target's layers and heads alone; on any device.
        atoms: dictionaries of the target's tables, on its device.
        preparation: what is undone, or None.
    """
    sinks = exact.shape[2]
    target.leading(sinks).write(exact)
    # A sum of atoms may pass the largest float16: it is kept from becoming infinity.
    where = target.tables.behind(sinks)
    reconstruct_into(codes.to(target.device), atoms, where, preparation=preparation)


def tables_of(layers: range) -> range:
    """Keys and values of layers, counted among the tables of a group."""
    return range(2 * layers.start, 2 * layers.stop)
