"""Who is calling: the tenant comes from the token, never from a message."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from lexico_proto.errors import ConfigurationError, Unauthenticated
from lexico_store.scopes import tenant_scope

DEFAULT_TENANT: Final = "default"
_MIN_TOKEN_LENGTH: Final = 16

Metadata = Iterable[tuple[str, str | bytes]] | None


class Tenants:
    """Maps the bearer token of a call to the scope of its tenant."""

    def __init__(self, tokens: Mapping[str, str] | None = None) -> None:
        """
        Args:
            tokens: token → tenant; None where every caller is the tenant `default`.
        """
        # Looked up by digest: the time a look-up takes tells nothing about a token.
        self._tenants = (
            None if tokens is None else {_digest(token): name for token, name in tokens.items()}
        )

    @classmethod
    def from_file(cls, path: Path | None) -> Tenants:
        """Reads lines of `tenant:token`; empty lines and lines that begin with # count for nothing.

        Raises:
            ConfigurationError: the file cannot be read, or a line cannot be used; the line's number
                is named, its text is not.
        """
        if path is None:
            return cls(None)
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"token file {path}: {error}") from error
        tokens: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            tenant, colon, token = (part.strip() for part in line.partition(":"))
            if not tenant or not colon or len(token) < _MIN_TOKEN_LENGTH or token in tokens:
                raise ConfigurationError(
                    f"token file {path} line {number}: needs tenant:token, the token at least "
                    f"{_MIN_TOKEN_LENGTH} characters and named once"
                )
            tokens[token] = tenant
        if not tokens:
            raise ConfigurationError(f"token file {path} names no tenant")
        return cls(tokens)

    def scope_of(self, metadata: Metadata) -> bytes:
        """Store scope of the caller.

        Raises:
            Unauthenticated: a token is needed and there is none, or an unknown one.
        """
        if self._tenants is None:
            return tenant_scope(DEFAULT_TENANT)
        given = next((value for key, value in metadata or () if key == "authorization"), "")
        text = given.decode(errors="replace") if isinstance(given, bytes) else given
        scheme, _, token = text.partition(" ")
        tenant = self._tenants.get(_digest(token)) if scheme.lower() == "bearer" else None
        if tenant is None:
            raise Unauthenticated("no tenant for this token: send 'authorization: Bearer <token>'")
        return tenant_scope(tenant)


def _digest(token: str) -> bytes:
    return hashlib.blake2b(token.encode(), digest_size=32, person=b"lexico-token").digest()
