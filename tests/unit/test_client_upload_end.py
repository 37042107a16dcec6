"""How an upload ended, where grpc.aio fails at its own end of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import grpc
import grpc.aio
import pytest

from lexico_client._grpc import GrpcTransport
from lexico_proto.errors import Busy


class _Call:
    """A client-streaming call that a service ended with RESOURCE_EXHAUSTED before its last message.

    Args:
        fails: "write" or "done_writing", which then raises what grpc.aio raises.
    """

    def __init__(self, fails: str, raised: Exception) -> None:
        self._fails = fails
        self._raised = raised
        self._noted: list[Callable[[Any], None]] = []
        self.cancelled = False

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._noted.append(callback)

    async def write(self, message: object) -> None:
        self._end_in("write")

    async def done_writing(self) -> None:
        self._end_in("done_writing")

    def _end_in(self, step: str) -> None:
        if step == self._fails:
            for callback in self._noted:
                callback(self)
            raise self._raised

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.RESOURCE_EXHAUSTED

    async def details(self) -> str:
        return "no room"

    async def trailing_metadata(self) -> tuple[()]:
        return ()

    def __await__(self) -> Generator[Any, None, Any]:
        raise _error()
        yield

    def cancel(self) -> bool:
        self.cancelled = True
        return True


def _error() -> grpc.aio.AioRpcError:
    nothing, details = grpc.aio.Metadata(), "Internal error from Core"
    return grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, details, "")


@pytest.mark.parametrize(
    ("fails", "raised"),
    [
        ("write", _error()),
        ("write", asyncio.InvalidStateError("RPC already finished.")),
        ("done_writing", grpc.aio.InternalError("failed: grpc_call_start_batch")),
        ("done_writing", grpc.aio.BaseError("ExecuteBatch")),
    ],
)
def test_an_upload_that_the_service_ends_says_what_the_service_said(
    fails: str, raised: Exception
) -> None:
    call = _Call(fails, raised)

    async def messages() -> AsyncGenerator[bytes, None]:
        yield b"one"

    async def upload() -> None:
        transport = GrpcTransport("127.0.0.1:1")
        await transport._write_all("put", lambda **_: call, messages(), 1.0, ())

    with pytest.raises(Busy, match="no room"):
        asyncio.run(upload())
    assert call.cancelled
