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
from lexico_codec.kernels.target import Target
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

    @abstractmethod
    def encode(
        self, group: Tensor, place: Place, dictionary: DictionarySet | None
    ) -> bytes | bytearray | memoryview:
        """The body of a frame.

        Args:
            group: `[layers, 2, tokens, kv_heads, head_dim]`, contiguous, finite; keys first.
            place: where the group lies.
            dictionary: the set that the spec names; None for a codec without one.
        """

    @abstractmethod
    def decode(
        self, body: memoryview, place: Place, dictionary: DictionarySet | None, out: Tensor
    ) -> None:
        """Fills `out` from a body.

        Args:
            body: what `encode` gave, its checksum verified.
            place: where the group lies.
            dictionary: as for `encode`.
            out: `[layers, 2, tokens, kv_heads, head_dim]`, of any strides, on any device; the
                caller's own.

        Raises:
            DamagedFrame: the body is none that `encode` makes for this shape.
        """

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


def target_over(out: Tensor, sinks: int) -> Target:
    """Where the coded vectors of a group go.

    Args:
        out: `[layers, 2, tokens, kv_heads, head_dim]`, of any strides.
        sinks: leading tokens that are not coded.
    """
    layers, _, tokens = out.shape[:3]
    coded = out[:, :, sinks:]
    if layers == 1 or out.stride(0) == 2 * out.stride(1):  # as caches lie: layers in one run
        return Target.over(coded.view(2 * layers, *coded.shape[2:]))
    return Target.of([part for layer in coded for part in layer], tokens - sinks)
