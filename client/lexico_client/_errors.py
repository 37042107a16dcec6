"""gRPC's errors in, ours out: nothing of gRPC leaves the client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import grpc
import grpc.aio

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
    pairs = cast(Iterable[tuple[str, str | bytes]], trailing or ())
    reason = next((str(value) for key, value in pairs if key == REASON_METADATA_KEY), None)
    message = details or f"the call ended with {code.name} and said no more"
    return from_wire(int(code.value[0]), reason, message)


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
