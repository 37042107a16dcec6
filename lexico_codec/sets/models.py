"""The names by which the service is asked for the set of a model: digests, which say no more."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from typing import Final

from lexico_codec.geometry import Geometry
from lexico_proto.errors import InvalidInput
from lexico_proto.limits import DIGEST_BYTES

_ANY: Final = "float32"


def model_names(weights: bytes, geometry: Geometry) -> tuple[bytes, bytes]:
    """The names that a set is published under, 32 bytes each, the most exact one first.

    The first is of these weights alone. The second is of every model of this shape, layers, KV
    heads, head dimension and rotary embedding: what a set is checked against before it codes, and
    what remains the same where weights were cast while loading, or bear an adapter. The element
    type of the cache is in neither: sets serve all.

    Args:
        weights: fingerprint of the model's weights, 32 bytes.
        geometry: of the whole model.

    Raises:
        InvalidInput: a fingerprint of another length.
    """
    if len(weights) != DIGEST_BYTES:
        raise InvalidInput(f"weights: a fingerprint has {DIGEST_BYTES} bytes, not {len(weights)}")
    shape = replace(geometry, dtype=_ANY).canonical()
    return _name(b"lexico-weights", weights, shape), _name(b"lexico-shape", shape)


def _name(person: bytes, *parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=person)
    for part in parts:
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return digest.digest()
