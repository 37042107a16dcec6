"""Every error that leaves Lexico Offload, and the one table that maps it to a gRPC status and back.

    LexicoError
    ├── InvalidInput            INVALID_ARGUMENT     the caller sent something that can never work
    │   ├── TokenCountMismatch  INVALID_ARGUMENT     token ids, pages and page size do not fit
    │   ├── PageKeyMismatch     INVALID_ARGUMENT     a page key is not the one its tokens give
    │   ├── ShapeMismatch       INVALID_ARGUMENT     a tensor's shape, dtype or layer count is wrong
    │   ├── NonFiniteCache      INVALID_ARGUMENT     NaN or infinity among keys or values
    │   ├── StreamTruncated     INVALID_ARGUMENT     an upload ended before its declared bytes
    │   ├── StreamTooLong       INVALID_ARGUMENT     an upload carried more than its declared bytes
    │   ├── StreamDamaged       INVALID_ARGUMENT     a page's bytes are not those its sender summed
    │   └── ConfigurationError  INVALID_ARGUMENT     a setting or URL that cannot be used
    ├── Unsupported             UNIMPLEMENTED        a model, option or use not covered here
    │   ├── UnknownCodec        UNIMPLEMENTED        no codec of that name here
    │   └── NewerFrame          UNIMPLEMENTED        stored by a newer version: a miss
    ├── UnknownDictionary       NOT_FOUND            no dictionary set with that digest
    ├── DictionaryMismatch      FAILED_PRECONDITION  a dictionary set made for another model
    ├── DamagedFrame            DATA_LOSS            stored bytes that fail a check: a miss
    │   └── FrameMismatch       DATA_LOSS            a sound frame that belongs elsewhere
    ├── Busy                    RESOURCE_EXHAUSTED   a bound is reached: retry later or recompute
    │   ├── MessageTooLarge     RESOURCE_EXHAUSTED   one message over the size limit
    │   └── QuotaExceeded       RESOURCE_EXHAUSTED   the tenant has what it may have
    ├── Unavailable             UNAVAILABLE          a part of the service is not there
    │   ├── StoreUnavailable    UNAVAILABLE          the page store does not answer
    │   ├── EncoderLost         UNAVAILABLE          an encoder died twice with the same page
    │   └── CircuitOpen         UNAVAILABLE          a server was silent, and was not asked again
    ├── DeadlineExpired         DEADLINE_EXCEEDED    no answer within the caller's deadline
    ├── Cancelled               CANCELLED            the caller went away
    │   └── Forgotten           CANCELLED            the page was forgotten on its way
    ├── Unauthenticated         UNAUTHENTICATED      no tenant for this token
    ├── PermissionDenied        PERMISSION_DENIED    the tenant may not do this
    └── InternalError           INTERNAL             a defect of ours

Each class owns a `reason`, a word that is unique in the tree and travels in the trailing metadata
beside the status, so that the client raises the very class the server raised. Codes are plain
integers: this module imports no gRPC.
"""

from __future__ import annotations

from typing import ClassVar, Final

REASON_METADATA_KEY: Final = "lexico-reason"
"""Trailing metadata that names the error class."""


class LexicoError(Exception):
    """Root of the tree. Never raised itself."""

    status: ClassVar[int]
    """Canonical gRPC status code."""
    reason: ClassVar[str]
    """Stable name of the class on the wire."""
    request_id: str = ""
    """Of the call that the service ended with it, whose log lines there have the same; empty where
    it arose here."""

    @property
    def message(self) -> str:
        """What went wrong and what to do about it."""
        return str(self)


class InvalidInput(LexicoError):
    """The caller sent something that can never work."""

    status = 3
    reason = "invalid-input"


class TokenCountMismatch(InvalidInput):
    """Token ids, page count and page size do not fit together."""

    reason = "token-count-mismatch"


class PageKeyMismatch(InvalidInput):
    """A page key is not the one that its namespace and tokens give."""

    reason = "page-key-mismatch"


class ShapeMismatch(InvalidInput):
    """A tensor's shape, dtype or layer count is not the one of the geometry."""

    reason = "shape-mismatch"


class NonFiniteCache(InvalidInput):
    """NaN or infinity among keys or values."""

    reason = "non-finite-cache"


class StreamTruncated(InvalidInput):
    """An upload ended before the bytes that its header declared."""

    reason = "stream-truncated"


class StreamTooLong(InvalidInput):
    """An upload carried more bytes than its header declared."""

    reason = "stream-too-long"


class StreamDamaged(InvalidInput):
    """The bytes of a page are not those that its sender computed the checksum of."""

    reason = "stream-damaged"


class ConfigurationError(InvalidInput):
    """A setting or URL that cannot be used."""

    reason = "configuration"


class Unsupported(LexicoError):
    """A model, layer kind, option or use that this version does not cover."""

    status = 12
    reason = "unsupported"


class UnknownCodec(Unsupported):
    """No codec of that name in this version."""

    reason = "unknown-codec"


class NewerFrame(Unsupported):
    """A sound frame of a version or codec that this build does not know. On reload the page is a
    miss, and is left alone: others can read it."""

    reason = "newer-frame"


class UnknownDictionary(LexicoError):
    """No dictionary set with that digest is registered or on disk."""

    status = 5
    reason = "unknown-dictionary"


class DictionaryMismatch(LexicoError):
    """A dictionary set that was made for another geometry, another codec or other weights."""

    status = 9
    reason = "dictionary-mismatch"


class DamagedFrame(LexicoError):
    """Stored bytes that fail a check. On reload the page is a miss."""

    status = 15
    reason = "damaged-frame"


class FrameMismatch(DamagedFrame):
    """A sound frame that belongs to another page, geometry, codec or dictionary set."""

    reason = "frame-mismatch"


class Busy(LexicoError):
    """A bound is reached: retry later, or recompute."""

    status = 8
    reason = "busy"


class MessageTooLarge(Busy):
    """One message over the size limit."""

    reason = "message-too-large"


class QuotaExceeded(Busy):
    """The tenant has what the operator's policy allows it: the message says of what, and until
    when."""

    reason = "quota-exceeded"


class Unavailable(LexicoError):
    """A part of the service is not there."""

    status = 14
    reason = "unavailable"


class StoreUnavailable(Unavailable):
    """The page store does not answer."""

    reason = "store-unavailable"


class EncoderLost(Unavailable):
    """An encoder died with the page, and so did the one that tried again."""

    reason = "encoder-lost"


class CircuitOpen(Unavailable):
    """A server did not answer lately, and this call was not to find out whether it does now."""

    reason = "circuit-open"


class DeadlineExpired(LexicoError):
    """No answer within the caller's deadline."""

    status = 4
    reason = "deadline-expired"


class Cancelled(LexicoError):
    """The caller went away."""

    status = 1
    reason = "cancelled"


class Forgotten(Cancelled):
    """The page was forgotten while it was on its way, so it is not stored."""

    reason = "forgotten"


class Unauthenticated(LexicoError):
    """No tenant for this token."""

    status = 16
    reason = "unauthenticated"


class PermissionDenied(LexicoError):
    """The tenant may not do this."""

    status = 7
    reason = "permission-denied"


class InternalError(LexicoError):
    """A defect of ours; the server's log has the traceback."""

    status = 13
    reason = "internal"


def _tree(root: type[LexicoError]) -> list[type[LexicoError]]:
    found: list[type[LexicoError]] = []
    for child in root.__subclasses__():
        if child.__module__ == __name__:
            found += [child, *_tree(child)]
    return found


ERRORS: Final[dict[str, type[LexicoError]]] = {cls.reason: cls for cls in _tree(LexicoError)}
"""reason → class, for every class of the tree but the root."""

_BY_STATUS: Final[dict[int, type[LexicoError]]] = {
    cls.status: cls for cls in LexicoError.__subclasses__() if cls.__module__ == __name__
}


def from_wire(status: int, reason: str | None, message: str) -> LexicoError:
    """The error that a gRPC status stands for.

    Args:
        status: canonical status code of the failed call, never OK.
        reason: value of the trailing metadata `lexico-reason`, or None where the peer sent none
            (a proxy, or gRPC itself).
        message: status details.

    Returns:
        An instance of the class that `reason` names if its status agrees, else of the class that
        stands for `status` alone, else `InternalError`.
    """
    named = ERRORS.get(reason or "")
    if named is not None and named.status == status:
        return named(message)
    return _BY_STATUS.get(status, InternalError)(message)


def reason_of(error: BaseException) -> str:
    """The reason that an exception is counted under, always one of `ERRORS`.

    What is no `Exception` ends a call from outside: a cancelled task, a generator that is closed.
    """
    if isinstance(error, LexicoError) and error.reason in ERRORS:
        return error.reason
    return InternalError.reason if isinstance(error, Exception) else Cancelled.reason
