"""Tokens that an operator hands out: a line for each in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from lexico_proto.errors import ConfigurationError
from lexico_proto.metrics import Metrics
from lexico_proto.watched import WatchedFiles
from lexico_services.caller import Caller, is_tenant
from lexico_services.roles import USUAL, read_roles

_MIN_TOKEN_LENGTH: Final = 16


class TokenFile:
    """Lines of `tenant:token` or `tenant:token:roles`, the roles with commas between them.

    Empty lines and lines that begin with # count for nothing. A token may have colons: what is
    after the last one is roles only if every word of it names one. The file is read again when it
    changes, and a token that is no longer there is unknown from the next call on: the last one too,
    though a file without any is an error at the start.
    """

    def __init__(self, path: Path, metrics: Metrics | None = None) -> None:
        """
        Raises:
            ConfigurationError: the file cannot be read, or a line cannot be used; the line's number
                is named, its text is not.
        """
        self._path = path
        self._callers = WatchedFiles("token file", (path,), self._read, metrics)
        if not self._callers.now():
            raise ConfigurationError(f"token file {path} names no tenant")

    def caller(self, token: str) -> Caller | None:
        """Whose token it is, if anybody's."""
        return self._callers.now().get(_digest(token))

    def names(self) -> set[str]:
        """The tenants that it names."""
        return {caller.tenant for caller in self._callers.now().values()}

    def _read(self, contents: Sequence[bytes]) -> Mapping[bytes, Caller]:
        """digest → caller. Looked up by digest: the time of a look-up tells nothing of a token."""
        try:
            lines = contents[0].decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"token file {self._path}: is no UTF-8") from error
        callers: dict[bytes, Caller] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            tenant, colon, rest = (part.strip() for part in line.partition(":"))
            token, roles = _token_and_roles(rest)
            digest = _digest(token)
            usable = len(token) >= _MIN_TOKEN_LENGTH and token.isascii() and token.isprintable()
            if not is_tenant(tenant) or not colon or not usable or digest in callers:
                raise ConfigurationError(
                    f"token file {self._path} line {number}: needs tenant:token or "
                    f"tenant:token:roles, the token at least {_MIN_TOKEN_LENGTH} characters of "
                    "ASCII and named once"
                )
            callers[digest] = Caller(tenant, roles)
        return callers


def _token_and_roles(rest: str) -> tuple[str, frozenset[str]]:
    token, _, last = rest.rpartition(":")
    roles = read_roles(word.strip() for word in last.split(","))
    return (token.strip(), roles) if token and roles else (rest, USUAL)


def _digest(token: str) -> bytes:
    return hashlib.blake2b(token.encode(), digest_size=32, person=b"lexico-token").digest()
