"""How an upload ended, told past a fault of grpc.aio.

Where a service ends a call while a write is under way, the write fails, and grpc.aio (1.85,
`_write` in aio/_call.py) then sets a status of its own, INTERNAL "Internal error from Core". It
takes the place of the service's status where that came first, and the service's takes its place
where it comes later. So the status is noted at the moment it is first set, and waited for where it
was not the service's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

import grpc
import grpc.aio

from lexico_client._errors import error_of
from lexico_proto.errors import InternalError

_NOT_THE_SERVICES: Final = "Internal error from Core"
_LOOKS: Final = 100
_LOOK_SECONDS: Final = 0.005


class UploadEnd:
    """Watches one client-streaming call from its start."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._code: grpc.StatusCode | None = None
        self._details: str | None = None
        self._trailing: Any = None
        call.add_done_callback(self._note)

    async def answer(self) -> Any:
        """The service's answer.

        Raises:
            LexicoError: what the service ended the call with.
            InternalError: it answered well, before it had the whole upload.
        """
        try:
            return await self._call
        except grpc.aio.AioRpcError as error:
            code, details, trailing = await self.status()
            if code is None:
                raise
            if code is grpc.StatusCode.OK:
                early = InternalError("the service answered before it had the whole upload")
                raise early from error
            raise error_of(code, details, trailing) from error

    async def status(self) -> tuple[grpc.StatusCode | None, str | None, Any]:
        """Code, details and trailing metadata of the ended call; None each where it has none."""
        for _ in range(_LOOKS):
            if self._details != _NOT_THE_SERVICES:
                break
            await asyncio.sleep(_LOOK_SECONDS)
            self._note(self._call)
        return self._code, self._details, self._trailing

    def _note(self, call: Any) -> None:
        """Called by grpc.aio inside the step that sets the status: nothing can replace it
        meanwhile."""
        self._code = _at_once(call.code())
        self._details = _at_once(call.details())
        self._trailing = _at_once(call.trailing_metadata())


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Result of a coroutine that does not wait, as those of an ended call do not; else None."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    return None
