"""Exit codes of the commands that call servers. docs/reference/cli.md has this table."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from lexico_proto.errors import (
    Busy,
    DeadlineExpired,
    InvalidInput,
    LexicoError,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
    Unavailable,
    UnknownDictionary,
)


class Exit(IntEnum):
    """What an exit code says."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    NOT_THERE = 3
    REFUSED = 4
    NO_ANSWER = 5
    INTERRUPTED = 130


MEANINGS: Final = {
    Exit.DONE: "it is done",
    Exit.FAILED: "any other failure",
    Exit.BAD_INPUT: "an option, a file or a setting that cannot be used",
    Exit.NOT_THERE: "what was asked for is not stored, or not all of it",
    Exit.REFUSED: "the token is not known, or lacks the role, or the tenant's quota is used up",
    Exit.NO_ANSWER: "a server is not there, has no room now, or does not answer in time: try again",
    Exit.INTERRUPTED: "Ctrl-C",
}

_OF_ERRORS: Final[tuple[tuple[type[LexicoError], Exit], ...]] = (
    (InvalidInput, Exit.BAD_INPUT),
    (UnknownDictionary, Exit.NOT_THERE),
    (Unauthenticated, Exit.REFUSED),
    (PermissionDenied, Exit.REFUSED),
    (QuotaExceeded, Exit.REFUSED),
    (Busy, Exit.NO_ANSWER),
    (Unavailable, Exit.NO_ANSWER),
    (DeadlineExpired, Exit.NO_ANSWER),
)


def exit_code(error: LexicoError) -> Exit:
    """The code that an error ends a command with."""
    return next((code for kind, code in _OF_ERRORS if isinstance(error, kind)), Exit.FAILED)
