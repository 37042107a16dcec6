"""Long replies of Redis straight into the memory where they are wanted.

hiredis copies a reply into a buffer of its own and from there into new `bytes`, whose pages the
kernel has to clear: for frames of a megabyte that is half of what reading them costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from redis import exceptions as redis_exceptions

from lexico_proto.limits import MAX_FRAME_BYTES
from lexico_store.room import Runs

_AHEAD_BYTES: Final = 4096
"""Longest line, and most of a long reply that is copied at either end: what came along with a line
before or behind it."""


class BulkReplies:
    """Reads replies of RESP2 that are lines or bulk strings. For one exchange.

    Args:
        receive: `socket.recv_into`.
        read_error: the exception that an error line stands for.
    """

    def __init__(
        self,
        receive: Callable[[memoryview], int],
        read_error: Callable[[str], Exception],
    ) -> None:
        self._receive = receive
        self._read_error = read_error
        self._ahead = memoryview(bytearray(_AHEAD_BYTES))
        self._start = self._end = 0

    def next(self, room: Callable[[int], Runs]) -> Runs | bytes | Exception | None:
        """The next reply: a bulk string in the memory that `room` gives for its length, a line's
        text, None for what is not there, or an error of the server's.

        Raises:
            redis.ConnectionError: the server closed the connection, or no longer serves it.
            redis.InvalidResponse: neither of these, or longer than a frame can be.
            OSError: of the socket.
        """
        line = self._line()
        kind, text = line[:1], line[1:]
        if kind == b"$":
            return self._bulk(text, room)
        if kind == b"-":
            error = self._read_error(text.decode(errors="replace"))
            if isinstance(error, redis_exceptions.ConnectionError):
                raise error
            return error
        if kind in (b"+", b":"):
            return text
        raise redis_exceptions.InvalidResponse(f"a reply that begins with {kind!r}")

    def end(self) -> None:
        """
        Raises:
            redis.InvalidResponse: more came than was asked for.
        """
        if self._start != self._end:
            raise redis_exceptions.InvalidResponse("a reply that nobody asked for")

    def _bulk(self, text: bytes, room: Callable[[int], Runs]) -> Runs | None:
        length = _number(text)
        if length == -1:
            return None
        if not 0 <= length <= MAX_FRAME_BYTES:
            raise redis_exceptions.InvalidResponse(f"a value of {length} bytes is no frame")
        runs = room(length)
        for run in runs:
            self._fill(run)
        if self._line():
            raise redis_exceptions.InvalidResponse("a value that is longer than was said")
        return runs

    def _fill(self, run: memoryview) -> None:
        """The end of a long run is read along with what follows it, and copied."""
        done = self._copied(run)
        while len(run) - done >= _AHEAD_BYTES:
            done += self._more(run[done:])
        while done < len(run):
            self._start, self._end = 0, self._more(self._ahead)
            done += self._copied(run[done:])

    def _copied(self, into: memoryview) -> int:
        """Bytes that were ahead and go there."""
        size = min(len(into), self._end - self._start)
        into[:size] = self._ahead[self._start : self._start + size]
        self._start += size
        return size

    def _line(self) -> bytes:
        """The next line, without its end."""
        while (at := bytes(self._ahead[self._start : self._end]).find(b"\r\n")) < 0:
            kept = self._end - self._start
            if kept == _AHEAD_BYTES:
                raise redis_exceptions.InvalidResponse("a line without an end")
            self._ahead[:kept] = bytes(self._ahead[self._start : self._end])
            self._start, self._end = 0, kept
            self._end += self._more(self._ahead[kept:])
        line = bytes(self._ahead[self._start : self._start + at])
        self._start += at + 2
        return line

    def _more(self, into: memoryview) -> int:
        received = self._receive(into)
        if received == 0:
            raise redis_exceptions.ConnectionError("the server closed the connection")
        return received


def bytearray_room(length: int) -> Runs:
    """Room of its own for one value."""
    return (memoryview(bytearray(length)),)


def _number(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise redis_exceptions.InvalidResponse(f"a length of {text[:20]!r}") from None
