"""What a failure of Redis means to our callers: the one place that knows redis-py's exceptions."""

from __future__ import annotations

from typing import Final

from redis import exceptions as redis_exceptions

from lexico_proto.errors import (
    Busy,
    ConfigurationError,
    InternalError,
    LexicoError,
    StoreUnavailable,
)


class ServerSilent(redis_exceptions.ConnectionError):
    """A server was silent lately, and is not asked by this call: see `Breaker`."""


REFUSED: Final = (
    redis_exceptions.AuthenticationError,  # WRONGPASS, NOAUTH, invalid password
    redis_exceptions.AuthenticationWrongNumberOfArgsError,  # a user name, to a server before 6.0
    redis_exceptions.AuthorizationError,
    redis_exceptions.NoPermissionError,  # NOPERM: the ACL user may not use our commands or keys
)
"""The server is well but does not want us. These subclass ConnectionError: ask for them first."""

UNAVAILABLE: Final = (
    redis_exceptions.ConnectionError,  # refused, reset, closed in the middle; LOADING
    redis_exceptions.TimeoutError,  # no answer; the connection is closed: no stale reply
    redis_exceptions.ReadOnlyError,  # a replica, or a failover in progress
    redis_exceptions.ClusterDownError,  # CLUSTERDOWN, MASTERDOWN
    redis_exceptions.TryAgainError,  # a slot on the move
    redis_exceptions.InvalidResponse,  # not Redis's protocol; the connection is closed
    OSError,
)
"""A later call may succeed."""

UNAVAILABLE_PREFIXES: Final = (
    "MISCONF",  # cannot save, so refuses to write
    "NOREPLICAS",  # too few replicas to accept a write
    "BUSY",  # a script of someone's runs too long
)
"""First words of replies that redis-py has no class for."""

_CLUSTER: Final = (redis_exceptions.MovedError, redis_exceptions.ClusterCrossSlotError)
"""What a cluster says to someone who does not know that it is one."""

_NO_RIGHTS_IN_SCRIPT: Final = "user executing the script can't"
"""NOPERM as a script's caller hears it: a plain ERR."""

_NO_CLUSTER: Final = "cluster support disabled"


def is_lost(error: Exception) -> bool:
    """Whether no reply came: the connection could not be made, broke or was silent."""
    return (
        isinstance(
            error,
            redis_exceptions.ConnectionError
            | redis_exceptions.TimeoutError
            | redis_exceptions.InvalidResponse
            | OSError,
        )
        and not isinstance(error, REFUSED)
        and not isinstance(error, redis_exceptions.MaxConnectionsError)
    )


def is_of_another_kind(reply: object) -> bool:
    """Whether a reply says that something stands under the name that the command is not for."""
    return isinstance(reply, redis_exceptions.ResponseError) and str(reply).startswith("WRONGTYPE")


_CAUSES: Final[dict[str, type[redis_exceptions.ResponseError]]] = {
    "NOPERM": redis_exceptions.NoPermissionError,
    "OOM": redis_exceptions.OutOfMemoryError,
    "READONLY": redis_exceptions.ReadOnlyError,
    "CLUSTERDOWN": redis_exceptions.ClusterDownError,
    "MASTERDOWN": redis_exceptions.MasterDownError,
}


def cause_of_abort(error: Exception) -> Exception:
    """What was wrong when EXEC itself was refused; other errors as they are.

    `EXECABORT Transaction discarded because of: OOM command not allowed` is a full store.
    """
    _, because, words = str(error).partition("because of: ")
    if not because or not isinstance(error, redis_exceptions.ExecAbortError):
        return error
    first, _, rest = words.partition(" ")
    if first in _CAUSES:
        return _CAUSES[first](rest)
    return redis_exceptions.ResponseError(words)


def as_lexico(error: Exception, doing: str) -> LexicoError:
    """Our error for one of redis-py's. Raise it `from` the original.

    Args:
        doing: the operation, for the message: "commit".
    """
    if isinstance(error, REFUSED) or _NO_RIGHTS_IN_SCRIPT in str(error):
        return ConfigurationError(
            f"the page store refuses us ({doing}): check the URL's user and password, and its ACL"
        )
    if isinstance(error, redis_exceptions.OutOfMemoryError):
        return Busy(
            f"the page store is full ({doing}): raise maxmemory, or set the policy volatile-ttl"
        )
    reply = str(error)[:200]
    text = f"{type(error).__name__}: {reply}"
    if isinstance(error, UNAVAILABLE) or reply.partition(" ")[0] in UNAVAILABLE_PREFIXES:
        return StoreUnavailable(f"the page store does not answer ({doing}): {text}")
    if isinstance(error, _CLUSTER):
        return ConfigurationError(
            f"the page store is a cluster ({doing}): write redis+cluster:// in its URL"
        )
    if _NO_CLUSTER in reply:
        return ConfigurationError(
            f"the page store is not a cluster ({doing}): write redis:// in its URL"
        )
    if "unknown command 'SENTINEL'" in reply:
        return ConfigurationError(
            f"the URL names a server where it should name sentinels ({doing}): write redis://"
        )
    if isinstance(error, redis_exceptions.ResponseError) and "DB index" in reply:
        return ConfigurationError(f"the page store has no such database: {text}")
    return InternalError(f"the page store answered with an error ({doing}): {text}")
