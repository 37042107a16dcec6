"""Scopes: the part of every store key that keeps tenants apart."""

from __future__ import annotations

import hashlib
from typing import Final


def tenant_scope(tenant: str) -> bytes:
    """Scope of a tenant, 16 bytes. The tenant's name itself never reaches the store."""
    return hashlib.blake2b(tenant.encode(), digest_size=16, person=b"lexico-tenant").digest()


def generation_scope(scope: bytes, generation: int) -> bytes:
    """Scope under which pages of a generation lie; generation 0 is the tenant's own.

    Pages of a generation that is over are never named again, whoever still writes them.

    Args:
        scope: of the tenant.
        generation: when pages were forgotten last, in microseconds since 1970; 0 if never.
    """
    if generation == 0:
        return scope
    number = generation.to_bytes(8, "big")
    return hashlib.blake2b(number, digest_size=16, key=scope, person=b"lexico-generatn").digest()


SHARED_SCOPE: Final = hashlib.blake2b(digest_size=16, person=b"lexico-shared").digest()
"""Where the operator keeps dictionary sets that every tenant may use."""
