"""What makes two caches interchangeable, part by part. A namespace is its digest."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from lexico_codec.geometry import Geometry
from lexico_proto.limits import DIGEST_BYTES


@dataclass(frozen=True)
class Part:
    """One thing that caches must have in common."""

    name: str
    value: bytes
    """What is hashed."""
    says: str
    """The same for people."""


@dataclass(frozen=True)
class Identity:
    """All that must agree before two caches are interchangeable, but the tenant.

    `CacheSpec.identity` makes it; its values are checked there. No model is needed.
    """

    weights: bytes
    """Fingerprint of the model's weights and config."""
    lora: str
    geometry: Geometry
    shard: tuple[int, int, int, int]
    """First layer, total layers, first head, total heads."""
    codec: str
    codec_config: str
    """Canonical JSON."""
    dictionary: bytes
    page_tokens: int
    group_layers: int
    salt: bytes = b""

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every part, in the order of docs/format.md; the salt alone is left out where empty."""
        first_layer, layers, first_head, heads = self.shard
        cut = f"layers from {first_layer} of {layers}, KV heads from {first_head} of {heads}"
        parts = (
            Part("weights", self.weights, self.weights.hex()),
            Part("lora", self.lora.encode(), self.lora or "none"),
            Part("geometry", self.geometry.canonical(), _geometry_says(self.geometry)),
            Part("shard", struct.pack("<IIII", *self.shard), cut),
            Part("codec", self.codec.encode(), self.codec),
            Part("codec config", self.codec_config.encode(), self.codec_config),
            Part("dictionary", self.dictionary, self.dictionary.hex() or "none"),
            Part(
                "pages",
                struct.pack("<II", self.page_tokens, self.group_layers),
                f"{self.page_tokens} tokens a page, {self.group_layers} layers a frame",
            ),
        )
        return parts + ((Part("salt", self.salt, self.salt.hex()),) if self.salt else ())

    @cached_property
    def namespace(self) -> bytes:
        """BLAKE2b-256 of all parts, 32 bytes: the parent of the first page's key."""
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"lexico-namespace")
        for part in self._hashed():  # length-prefixed: no two identities run to the same bytes
            digest.update(struct.pack("<Q", len(part)))
            digest.update(part)
        return digest.digest()

    def difference(self, other: Identity) -> tuple[str, ...]:
        """Names of the parts in which another identity differs; empty where it is the same."""
        ours, theirs = ({part.name: part.value for part in i.parts} for i in (self, other))
        return tuple(name for name in ours | theirs if ours.get(name) != theirs.get(name))

    def _hashed(self) -> Iterator[bytes]:
        for part in self.parts:
            if part.name == "salt":  # later than the first format: parts since then bear a name
                yield part.name.encode()
            yield part.value


def _geometry_says(geometry: Geometry) -> str:
    rope, turned = geometry.rope, "no rotary embedding"
    if rope is not None:
        turned = (
            f"rotary embedding {rope.pairing} over {rope.rotary_dim}, slowest pair "
            f"{rope.inv_freq[-1]:.4g}, scale {rope.scale:.4g}"
        )
    shape = f"{geometry.layers} layers, {geometry.kv_heads} KV heads of {geometry.head_dim}"
    return f"{shape}, {geometry.dtype}, {turned}"
