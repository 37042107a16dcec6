"""Channels for gRPC's own stubs, whose uploads end with the service's status.

Where the service ends a call while a write is under way, grpc.aio sets INTERNAL "Internal error
from Core" over the service's status. The client undoes it in its calls (`UploadEnd`); here the
tests' own calls do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import grpc
import grpc.aio

from lexico_client._upload_end import UploadEnd

CHANNEL_OPTIONS = (("grpc.max_receive_message_length", 2 << 20),)


def service_channel(address: str) -> Any:
    """A plaintext channel to one of our servers, a `grpc.aio.Channel` otherwise."""
    return _Channel(grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS))


class _Channel:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    async def __aenter__(self) -> _Channel:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._channel.close(None)

    def stream_unary(self, *method: Any, **coders: Any) -> Callable[..., _Upload]:
        call: Any = self._channel.stream_unary(*method, **coders)
        return lambda *request, **options: _Upload(call(*request, **options))


class _Upload:
    """A client-streaming call."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._end = UploadEnd(call)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        try:
            return await self._call
        except grpc.aio.AioRpcError as error:
            code, details, trailing = await self._end.status()
            if code in (None, grpc.StatusCode.OK):
                raise
            debug = error.debug_error_string()
            initial = error.initial_metadata()
            raise grpc.aio.AioRpcError(code, initial, trailing, details, debug) from None
