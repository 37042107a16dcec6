"""Channels for gRPC's own stubs, whose uploads end with the service's status.

Where the service ends a call while a write is under way, grpc.aio sets INTERNAL "Internal error
from Core" over the service's status; where it does while the last write is told to be the last,
gRPC's own request iterator cancels the call. The client writes by itself, and undoes the first in
its calls (`UploadEnd`); here the tests' own calls do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Generator
from contextlib import suppress
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
        return lambda messages, **options: _Upload(call(**options), messages)


class _Upload:
    """A client-streaming call, whose messages are sent from now on."""

    def __init__(self, call: Any, messages: Any) -> None:
        self._call = call
        self._end = UploadEnd(call)
        self._writing = asyncio.ensure_future(self._write(messages))
        call.add_done_callback(lambda _: self._writing.cancel())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    async def _write(self, messages: Any) -> None:
        try:
            async for message in _async(messages):
                await self._call.write(message)
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            return  # the call itself knows why
        except BaseException:
            self._call.cancel()
            raise
        with suppress(grpc.aio.BaseError):
            await self._call.done_writing()

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


async def _async(messages: Any) -> Any:
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            yield message
    else:
        for message in messages:
            yield message
