"""gRPC's errors in, ours out: nothing of gRPC leaves the client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, cast

import grpc
import grpc.aio

from lexico_proto import request_id
from lexico_proto.errors import (
    REASON_METADATA_KEY,
    Cancelled,
    DeadlineExpired,
    InternalError,
    LexicoError,
    from_wire,
)


def error_of(code: grpc.StatusCode, details: str | None, trailing: object) -> LexicoError:
    """The error of our tree that a failed call stands for.

    Args:
        code: status, never OK.
        details: what the service said, if anything.
        trailing: trailing metadata: pairs, or None.
    """
    pairs = tuple(cast(Iterable[tuple[str, str | bytes]], trailing or ()))
    reason = next((str(value) for key, value in pairs if key == REASON_METADATA_KEY), None)
    message = details or f"the call ended with {code.name} and said no more"
    if reason is None:
        message += _hint(message)
    if reason is None and code is grpc.StatusCode.CANCELLED:
        # Nobody gave it up here, or grpc.aio would have said so otherwise, and nothing of ours did
        # there: gRPC ends calls so that come in the moment in which a server begins to drain.
        code, message = grpc.StatusCode.UNAVAILABLE, f"the server ended as the call came: {message}"
    error = from_wire(int(code.value[0]), reason, message)
    if request := request_id.given_in(pairs):
        error.request_id = request
        error.add_note(f"request={request}")
    return error


_NOT_CONNECTED: Final = ("failed to connect", "connections to all backends failing")
"""How gRPC begins where no connection can be made: to one address, and to those of a name."""
_HINTS: Final = (
    ("WRONG_VERSION_NUMBER", "the port speaks no TLS, so give no tls="),
    ("Hostname Verification", "the server's certificate has not this name: Tls(server_name=)"),
    ("certificate has expired", "the server's certificate ended"),
    ("CERTIFICATE_VERIFY_FAILED", "no authority of Tls(ca=) made the server's certificate"),
    (
        "Socket closed",
        "the server hung up before any call: does it want TLS, tls=Tls(), or a client "
        "certificate, another one than was shown?",
    ),
)
"""What gRPC says where a connection cannot be made → what is meant. The first that fits counts."""


def _hint(details: str) -> str:
    """What may have to be corrected, where gRPC itself ended the call before it was connected."""
    if not details.startswith(_NOT_CONNECTED):
        return ""
    return next((f" ({meant})" for said, meant in _HINTS if said in details), "")


@contextmanager
def translated(call: str) -> Iterator[None]:
    """Raises what gRPC raises inside as errors of our tree.

    A cancellation passes where the running task was cancelled. Where only the call was (its channel
    closed under it) the caller is told so.

    Args:
        call: name of the call, for messages.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_of(error.code(), error.details(), error.trailing_metadata()) from error
    except TimeoutError as error:
        raise DeadlineExpired(f"{call}: no answer within the deadline") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Cancelled(f"{call}: the client was closed while it ran") from error
    except (grpc.RpcError, grpc.aio.BaseError, grpc.aio.UsageError) as error:
        raise InternalError(f"{call}: {type(error).__name__}: {error}") from error
