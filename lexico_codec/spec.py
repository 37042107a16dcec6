"""What must agree before two caches are interchangeable, and how a page is cut into groups."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from typing import Final

from lexico_codec.codecs import codec_from_config
from lexico_codec.codecs.codec import Codec
from lexico_codec.geometry import Geometry
from lexico_codec.identity import Identity
from lexico_codec.limits import (
    MAX_KV_HEADS,
    MAX_LAYERS,
    MAX_LORA_BYTES,
    MAX_PAGE_TOKENS,
    MAX_SALT_BYTES,
)
from lexico_proto.errors import InvalidInput, ShapeMismatch, TokenCountMismatch, Unsupported
from lexico_proto.limits import DIGEST_BYTES, MAX_GROUPS

FRAME_TARGET_BYTES: Final = 1 << 20
"""Encoded size a layer group aims at: Redis and gRPC both move 1 MiB pieces fastest."""

DEFAULT_PAGE_TOKENS: Final = 64
"""Tokens a page: a sparse page of an 8B model is then one frame of about 1 MiB, and the tail that
fills no page is 32 tokens long on average."""
DEFAULT_RECENT_TOKENS: Final = 64
"""Newest tokens of a prompt that a node computes itself, though pages of them may be stored: what
is predicted next depends on them most, and what a lossy codec lost of them shows at once."""


@dataclass(frozen=True)
class Shard:
    """The slice of the whole model that one tensor- or pipeline-parallel rank holds."""

    first_layer: int
    total_layers: int
    first_head: int
    total_heads: int

    @classmethod
    def whole(cls, geometry: Geometry) -> Shard:
        """The shard of a model that one process holds."""
        return cls(0, geometry.layers, 0, geometry.kv_heads)


@dataclass(frozen=True)
class CacheSpec:
    """Identity of a family of pages, but for the tenant: the server knows that from the caller."""

    weights: bytes
    """Fingerprint of the model's weights, 32 bytes."""
    geometry: Geometry
    codec: Codec
    dictionary: bytes = b""
    """Digest of the dictionary set, 32 bytes; empty for a codec without one."""
    page_tokens: int = DEFAULT_PAGE_TOKENS
    group_layers: int = 0
    """Layers in one frame; 0 chooses what makes frames of about 1 MiB."""
    lora: str = ""
    """Identity of the adapter; empty for none."""
    shard: Shard = field(default=None)  # type: ignore[assignment]
    salt: bytes | str = b""
    """Whatever else the caller's pages shall be kept apart by; kept as bytes, text as UTF-8."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "salt", salt_bytes(self.salt))
        if self.shard is None:
            object.__setattr__(self, "shard", Shard.whole(self.geometry))
        if not _is_bytes(self.weights, DIGEST_BYTES):
            raise InvalidInput(f"spec: weights must be a digest of {DIGEST_BYTES} bytes")
        if not _is_bytes(self.dictionary, DIGEST_BYTES if self.codec.needs_dictionary else 0):
            wants = "a dictionary digest" if self.codec.needs_dictionary else "no dictionary"
            raise InvalidInput(f"spec: codec {self.codec.name} takes {wants}")
        if not _is_whole(self.page_tokens):
            raise TokenCountMismatch(
                f"spec: page_tokens={self.page_tokens!r}: an integer, 1..{MAX_PAGE_TOKENS}"
            )
        if not 1 <= self.page_tokens <= MAX_PAGE_TOKENS:
            raise TokenCountMismatch(
                f"spec: page_tokens={self.page_tokens} is outside 1..{MAX_PAGE_TOKENS}"
            )
        if not _is_whole(self.group_layers):
            raise ShapeMismatch(f"spec: group_layers={self.group_layers!r}: an integer is needed")
        _check_lora(self.lora)
        shard, geometry = self.shard, self.geometry
        if not (0 <= shard.first_layer <= shard.total_layers - geometry.layers) or not (
            0 <= shard.first_head <= shard.total_heads - geometry.kv_heads
        ):
            raise ShapeMismatch("spec: the shard does not hold the geometry's layers and heads")
        if shard.total_layers > MAX_LAYERS or shard.total_heads > MAX_KV_HEADS:
            raise ShapeMismatch(
                f"spec: a model of {shard.total_layers} layers and {shard.total_heads} heads: at "
                f"most {MAX_LAYERS} and {MAX_KV_HEADS}"
            )
        self.codec.check_geometry(self.whole_geometry)
        wanted = self.codec.group_layers(self.whole_geometry)
        if self.group_layers == 0:
            chosen = self._default_group_layers() if wanted is None else wanted
            object.__setattr__(self, "group_layers", chosen)
        elif wanted not in (None, self.group_layers):
            raise ShapeMismatch(
                f"spec: group_layers={self.group_layers}: codec {self.codec.name} codes {wanted} "
                "layers together; leave it out"
            )
        if not 1 <= self.group_layers <= shard.total_layers:
            raise ShapeMismatch(
                f"spec: group_layers={self.group_layers} is outside 1..{shard.total_layers}"
            )
        if self.groups > MAX_GROUPS:
            raise ShapeMismatch(
                f"spec: group_layers={self.group_layers} makes {self.groups} frames a page: at "
                f"most {MAX_GROUPS}, so give more layers to a group"
            )

    def _default_group_layers(self) -> int:
        whole = self.whole_geometry
        layer = self.codec.encoded_bytes(whole, self.page_tokens)
        wanted = round(whole.layers * layer / FRAME_TARGET_BYTES)
        frames = min(max(1, wanted), whole.layers, MAX_GROUPS)
        return math.ceil(whole.layers / frames)

    @cached_property
    def namespace(self) -> bytes:
        """Digest of the identity, 32 bytes: the parent of the first page's key."""
        return self.identity.namespace

    @cached_property
    def identity(self) -> Identity:
        """What the namespace is made of, part by part: that of the whole model, whatever slice a
        rank holds, and however many ranks there are."""
        whole = self.whole_geometry
        return Identity(
            weights=self.weights,
            lora=self.lora,
            geometry=whole,
            shard=astuple(Shard.whole(whole)),
            codec=self.codec.name,
            codec_config=self.codec.config_json(),
            dictionary=self.dictionary,
            page_tokens=self.page_tokens,
            group_layers=self.group_layers,
            salt=salt_bytes(self.salt),
        )

    @property
    def whole_geometry(self) -> Geometry:
        """Geometry of the whole model that the shard is of."""
        geometry, shard = self.geometry, self.shard
        if (geometry.layers, geometry.kv_heads) == (shard.total_layers, shard.total_heads):
            return geometry
        return replace(geometry, layers=shard.total_layers, kv_heads=shard.total_heads)

    @property
    def is_whole(self) -> bool:
        """Whether it is of a whole model."""
        return self.whole_geometry == self.geometry

    @property
    def whole(self) -> CacheSpec:
        """The spec of the whole model that the shard is of: pages are of that."""
        return self if self.is_whole else self._unsplit

    @cached_property
    def _unsplit(self) -> CacheSpec:
        return replace(self, geometry=self.whole_geometry, shard=Shard.whole(self.whole_geometry))

    def held_by(self, layers: range, heads: range) -> CacheSpec:
        """The spec of what a rank holds of the whole model: `AsyncClient.offload` sends it as a
        slice.

        Args:
            layers, heads: of the whole model, consecutive.

        Raises:
            ShapeMismatch: the model has no such layers or heads.
        """
        whole = self.whole_geometry
        part = replace(whole, layers=len(layers), kv_heads=len(heads))
        shard = Shard(layers.start, whole.layers, heads.start, whole.kv_heads)
        return replace(self, geometry=part, shard=shard)

    def check_whole(self) -> None:
        """Raises for a slice of a model: pages are of the whole.

        Raises:
            Unsupported: it is of a slice.
        """
        if not self.is_whole:
            shard, g = self.shard, self.geometry
            raise Unsupported(
                f"a slice of a model, {g.layers} of {shard.total_layers} layers and {g.kv_heads} "
                f"of {shard.total_heads} KV heads, is no page: use spec.whole, and load with it "
                "into a CacheMemory of the rank's layers and heads"
            )

    @property
    def groups(self) -> int:
        """Frames of a page."""
        return math.ceil(self.geometry.layers / self.group_layers)

    def group_range(self, group: int) -> range:
        """Layers of one group, counted within the shard."""
        first = group * self.group_layers
        return range(first, min(first + self.group_layers, self.geometry.layers))

    def group_shape(self, group: int) -> tuple[int, int, int, int, int]:
        """`(layers, 2, page_tokens, kv_heads, head_dim)`; index 0 of the second axis is keys."""
        g = self.geometry
        return (len(self.group_range(group)), 2, self.page_tokens, g.kv_heads, g.head_dim)

    def group_bytes(self, group: int) -> int:
        """Bytes of one group before encoding."""
        return math.prod(self.group_shape(group)) * self.geometry.itemsize

    def reloadable_tokens(self, prompt: int, recent: int = DEFAULT_RECENT_TOKENS) -> int:
        """Leading tokens of a prompt to take from its pages: the model is to compute the rest.

        Args:
            prompt: its tokens.
            recent: newest tokens that are computed in any case; 1, which predicts the next token,
                where the codec is lossless.

        Returns:
            Tokens of full pages; the last of them may be in the middle of one. 0 for none.

        Raises:
            InvalidInput: `recent` is no integer of 1 or more.
        """
        return reloadable_tokens(prompt, self.page_tokens, 1 if self.codec.lossless else recent)

    def pages_of(self, tokens: int) -> int:
        """Pages that hold the leading tokens of a sequence."""
        return math.ceil(tokens / self.page_tokens)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page before encoding."""
        return self.page_tokens * self.geometry.token_bytes


def salt_bytes(salt: bytes | str) -> bytes:
    """A salt as it is hashed.

    Raises:
        InvalidInput: neither bytes nor text, or longer than `MAX_SALT_BYTES`.
    """
    try:
        salted = salt.encode() if isinstance(salt, str) else salt
    except UnicodeEncodeError as error:
        raise InvalidInput(f"spec: the salt is no UTF-8: {error}") from error
    if not isinstance(salted, bytes) or len(salted) > MAX_SALT_BYTES:
        raise InvalidInput(f"spec: a salt is bytes or text of at most {MAX_SALT_BYTES} bytes")
    return salted


def _check_lora(lora: object) -> None:
    if not isinstance(lora, str):
        raise InvalidInput(f"spec: lora={lora!r}: the adapter's identity is text")
    try:
        size = len(lora.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput(f"spec: the lora identity is no UTF-8: {error}") from error
    if size > MAX_LORA_BYTES:
        raise InvalidInput(f"spec: lora identity is longer than {MAX_LORA_BYTES} bytes")


def _is_bytes(value: object, length: int) -> bool:
    return isinstance(value, bytes) and len(value) == length


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def reloadable_tokens(prompt: int, page_tokens: int, recent: int) -> int:
    """Tokens of a prompt's full pages that are not among its newest `recent` ones.

    Raises:
        InvalidInput: `recent` is no integer of 1 or more.
    """
    if not _is_whole(recent) or recent < 1:
        raise InvalidInput(f"recent_tokens={recent!r}: an integer of 1 or more is needed")
    return max(0, min(prompt - recent, prompt // page_tokens * page_tokens))


def make_spec(
    *,
    weights: bytes,
    geometry: Geometry,
    codec: str,
    codec_config: str = "{}",
    dictionary: bytes = b"",
    page_tokens: int = DEFAULT_PAGE_TOKENS,
    group_layers: int = 0,
    lora: str = "",
    shard: Shard | None = None,
    salt: bytes | str = b"",
) -> CacheSpec:
    """A `CacheSpec` from the plain values that travel.

    Raises:
        UnknownCodec, ConfigurationError, InvalidInput, ShapeMismatch, TokenCountMismatch: naming
            the field.
    """
    return CacheSpec(
        weights=weights,
        geometry=geometry,
        codec=codec_from_config(codec, codec_config),
        dictionary=dictionary,
        page_tokens=page_tokens,
        group_layers=group_layers,
        lora=lora,
        shard=shard or Shard.whole(geometry),
        salt=salt,
    )
