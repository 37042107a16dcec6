"""A read of gRPC's is awaited to its end, whatever becomes of who reads."""

from __future__ import annotations

import asyncio

import pytest

from lexico_client import _reading
from lexico_client._reading import read_message


class Call:
    """Of `grpc.aio`, as far as reads go: one under way ends once the call is cancelled."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.reading = asyncio.Event()
        self.reads_cancelled = self.reads_ended = self.cancelled = 0

    async def read(self) -> bytes:
        self.reading.set()
        try:
            return await asyncio.shield(self.answer)
        except asyncio.CancelledError:
            self.reads_cancelled += not self.cancelled
            raise
        finally:
            self.reads_ended += 1

    def cancel(self) -> None:
        if not self.cancelled:
            self.cancelled += 1
            self.answer.get_loop().call_soon(self.end)

    def end(self) -> None:
        self.answer.cancel()


class Failing(Call):
    def end(self) -> None:
        self.answer.set_exception(ValueError("of the call that was cancelled"))


class Stuck(Call):
    def end(self) -> None:
        pass


async def test_a_message_and_an_error_are_given() -> None:
    call = Call()
    call.answer.set_result(b"message")
    assert await read_message(call) == b"message"
    call = Call()
    call.answer.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await read_message(call)
    assert not call.cancelled


@pytest.mark.parametrize("kind", [Call, Failing])
async def test_who_is_cancelled_cancels_the_call_and_not_the_read(kind: type[Call]) -> None:
    call = kind()
    reader = asyncio.ensure_future(read_message(call))
    await call.reading.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert (call.cancelled, call.reads_cancelled, call.reads_ended) == (1, 0, 1)
    assert not _reading._left


async def test_a_timeout_is_one() -> None:
    call = Call()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await read_message(call)
    assert (call.cancelled, call.reads_cancelled, call.reads_ended) == (1, 0, 1)


async def test_a_read_that_does_not_end_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reading, "_ENDS_WITHIN_S", 0.01)
    call = Stuck()
    reader = asyncio.ensure_future(read_message(call))
    await call.reading.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert (call.cancelled, call.reads_cancelled, len(_reading._left)) == (1, 0, 1)
    call.answer.set_result(b"late")
    while _reading._left:
        await asyncio.sleep(0)
