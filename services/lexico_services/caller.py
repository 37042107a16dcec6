"""A caller: which tenant's, and what it may do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from lexico_services.roles import USUAL
from lexico_store.scopes import tenant_scope

MAX_TENANT_CHARS: Final = 255

Metadata = Iterable[tuple[str, str | bytes]] | None
Peer = Mapping[str, Iterable[bytes]]
"""What the connection says of the other end: `ServicerContext.auth_context()`."""


@dataclass(frozen=True)
class Caller:
    """Who is calling."""

    tenant: str
    roles: frozenset[str] = USUAL

    @cached_property
    def scope(self) -> bytes:
        """Of the tenant's pages in the store."""
        return tenant_scope(self.tenant)


def is_tenant(name: object) -> bool:
    """Whether a name that was given from outside can be a tenant's."""
    return isinstance(name, str) and 0 < len(name) <= MAX_TENANT_CHARS and name.isprintable()
