"""Scopes: the part of every store key that keeps tenants apart."""

from __future__ import annotations

import hashlib
from typing import Final


def tenant_scope(tenant: str) -> bytes:
    """Scope of a tenant, 16 bytes. The tenant's name itself never reaches the store."""
    return hashlib.blake2b(tenant.encode(), digest_size=16, person=b"lexico-tenant").digest()


SHARED_SCOPE: Final = hashlib.blake2b(digest_size=16, person=b"lexico-shared").digest()
"""Where the operator keeps dictionary sets that every tenant may use."""
