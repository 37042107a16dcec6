"""Our errors as gRPC statuses: the one way out of every call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from lexico_proto import request_id, tracing
from lexico_proto.errors import (
    REASON_METADATA_KEY,
    InternalError,
    InvalidInput,
    LexicoError,
    StoreUnavailable,
)
from lexico_proto.metrics import Calls
from lexico_services.trace import trace_of

_log = logging.getLogger(__name__)

STATUS_CODES: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}
"""Canonical integer → grpc.StatusCode."""


@asynccontextmanager
async def translated(
    context: grpc.aio.ServicerContext[Any, Any], calls: Calls
) -> AsyncIterator[None]:
    """Counts the call, and ends it with the status and reason of an error of our tree that
    leaves the block.

    Anything else that leaves it is a defect of ours: the caller sees INTERNAL, the log has the
    traceback. Log lines of the block have the call's request id, and spans the call as parent.
    """
    metadata = context.invocation_metadata()
    with request_id.request(request_id.given_in(metadata)):
        async with _answered(context, calls):
            parent = trace_of(metadata) if tracing.is_on() else ()
            span = tracing.span(f"lexico.{calls.method}", parent, "server")
            with span, calls.counted():
                span.set(request=request_id.current())
                try:
                    yield
                except DecodeError as error:
                    said = "the stream holds a message that cannot be parsed"
                    raise InvalidInput(said) from error


@asynccontextmanager
async def _answered(
    context: grpc.aio.ServicerContext[Any, Any], calls: Calls
) -> AsyncIterator[None]:
    try:
        yield
        _log.info("call=%s outcome=ok", calls.method)
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except StoreUnavailable as error:  # what redis-py says names the store's host
        _log.warning("store unavailable: %s", error.message)
        await abort(context, StoreUnavailable("the page store does not answer: try again later"))
    except LexicoError as error:
        _log.info("call=%s outcome=%s", calls.method, error.reason)
        await abort(context, error)
    except Exception:  # noqa: BLE001 - the caller must hear of it, and only the log see why
        _log.exception("a call failed")
        await abort(context, InternalError("a defect of the server; its log has the traceback"))


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: LexicoError) -> None:
    """Ends a call with the status and reason of an error, and the call's request id."""
    trailing = [(REASON_METADATA_KEY, error.reason)]
    if request := request_id.current():
        trailing.append((request_id.METADATA_KEY, request))
    await context.abort(STATUS_CODES[error.status], error.message, tuple(trailing))
