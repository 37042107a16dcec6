"""Tokens that an operator hands out: a line for each in a file."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from lexico_proto.errors import ConfigurationError
from lexico_proto.metrics import Metrics
from lexico_proto.watched import WatchedFiles
from lexico_services.caller import Caller, is_tenant
from lexico_services.roles import ROLES, USUAL, meant_as_roles, read_roles

_log = logging.getLogger(__name__)

_MIN_TOKEN_LENGTH: Final = 16
_WORDS: Final = re.compile(r"[A-Za-z\s,;|]+")
"""What looks like words that someone wrote, and not like a part of a random token."""


class TokenFile:
    """Lines of `tenant:token` or `tenant:token:roles`, the roles with commas between them.

    Empty lines and lines that begin with # count for nothing. A token may have colons: what is
    after the last one is roles only if every word of it names one. Where one of them does, or
    nearly, and not all, it is a slip: the line cannot be used. Other words are a part of the token,
    and the log says so. The file is read again when it changes, and a token that is no longer there
    is unknown from the next call on: the last one too, though a file without any is an error at the
    start.
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
            token, roles = self._token_and_roles(rest, number)
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

    def _token_and_roles(self, rest: str, number: int) -> tuple[str, frozenset[str]]:
        token, _, last = rest.rpartition(":")
        roles = read_roles(word.strip() for word in last.split(","))
        if token and roles:
            return token.strip(), roles
        if len(token.strip()) >= _MIN_TOKEN_LENGTH and _WORDS.fullmatch(last):
            place = f"token file {self._path} line {number}"
            known = ", ".join(sorted(ROLES))
            if meant_as_roles(re.findall(r"[A-Za-z]+", last)):
                raise ConfigurationError(
                    f"{place}: what follows the last colon is not all roles, and would be a part "
                    f"of the token: roles are {known}, with commas between"
                )
            _log.warning(
                "%s: what follows the last colon is taken for a part of the token: roles are %s",
                place,
                known,
            )
        return rest, USUAL


def _digest(token: str) -> bytes:
    return hashlib.blake2b(token.encode(), digest_size=32, person=b"lexico-token").digest()
