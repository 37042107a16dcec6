"""What is told of namespaces to those who may not know them."""

from __future__ import annotations

import hashlib

from lexico_proto.limits import DIGEST_BYTES


def namespace_digest(namespace: bytes) -> bytes:
    """What tells whether two namespaces are the same and names neither, 32 bytes: with a namespace
    itself one can ask for pages, though the salt in it be a secret."""
    return hashlib.blake2b(namespace, digest_size=DIGEST_BYTES, person=b"lexico-described").digest()
