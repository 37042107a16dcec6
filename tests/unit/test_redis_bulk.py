"""Long replies are read into the memory that is given for them, however they arrive."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions as redis_exceptions

from lexico_proto.limits import MAX_FRAME_BYTES
from lexico_store.redis_bulk import BulkReplies, bytearray_room
from lexico_store.room import Runs

VALUES = st.lists(st.none() | st.binary(max_size=9000), max_size=8)


def arriving(data: bytes, sizes: list[int] | None = None) -> Callable[[memoryview], int]:
    """A socket that gives at most so many bytes at a time, then nothing more."""
    rest, left = memoryview(data), list(sizes or [])

    def receive(into: memoryview) -> int:
        nonlocal rest
        size = min(len(into), len(rest), left.pop() if left else len(rest))
        into[:size], rest = rest[:size], rest[size:]
        return size

    return receive


def replies(data: bytes, sizes: list[int] | None = None) -> BulkReplies:
    return BulkReplies(arriving(data, sizes), redis_exceptions.ResponseError)


def runs_of(length: int, run: int) -> Runs:
    """Room in pieces of at most `run` bytes."""
    return tuple(memoryview(bytearray(min(run, length - at))) for at in range(0, length, run))


def whole(found: Runs | bytes | Exception | None) -> object:
    """A value in one piece."""
    return b"".join(found) if isinstance(found, tuple) else found


def wire(value: bytes | None) -> bytes:
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


@given(VALUES, st.lists(st.integers(1, 6000), max_size=60))
def test_values_arrive_whole_in_any_pieces(values: list[bytes | None], sizes: list[int]) -> None:
    reading = replies(b"".join(map(wire, values)), sizes)
    assert [whole(reading.next(bytearray_room)) for _ in values] == values
    reading.end()


@given(
    st.lists(st.binary(min_size=2, max_size=20_000), min_size=1, max_size=4),
    st.integers(1, 9000),
    st.lists(st.integers(1, 6000), max_size=60),
)
def test_values_arrive_in_several_places(values: list[bytes], run: int, sizes: list[int]) -> None:
    reading = replies(b"".join(map(wire, values)), sizes)
    for value in values:
        found = reading.next(lambda length: runs_of(length, run))
        assert isinstance(found, tuple)
        assert [bytes(each) for each in found] == [
            value[at : at + run] for at in range(0, len(value), run)
        ]
    reading.end()


def test_a_value_is_where_it_was_wanted() -> None:
    memory = memoryview(bytearray(100))
    found = replies(b"$5\r\nframe\r\n").next(lambda length: (memory[7:9], memory[20 : 18 + length]))
    assert whole(found) == b"frame"
    assert bytes(memory[:24]) == bytes(7) + b"fr" + bytes(11) + b"ame" + bytes(1)


def test_errors_of_the_server_stand_in_their_place() -> None:
    reading = replies(b"+OK\r\n-OOM no room\r\n:7\r\n" + wire(b"x"))
    assert reading.next(bytearray_room) == b"OK"
    error = reading.next(bytearray_room)
    assert isinstance(error, redis_exceptions.ResponseError)
    assert str(error) == "OOM no room"
    assert reading.next(bytearray_room) == b"7"
    assert whole(reading.next(bytearray_room)) == b"x"


def test_an_error_that_ends_the_connection_is_raised() -> None:
    reading = BulkReplies(arriving(b"-ERR no\r\n"), redis_exceptions.ConnectionError)
    with pytest.raises(redis_exceptions.ConnectionError, match="ERR no"):
        reading.next(bytearray_room)


@pytest.mark.parametrize(
    "data",
    [
        b"*1\r\n",
        b"\r\n",
        b"$five\r\n",
        b"$-2\r\n",
        b"$%d\r\n" % (MAX_FRAME_BYTES + 1),
        b"$3\r\nlonger\r\n",
        b"+" + b"x" * 5000,
    ],
    ids=["list", "empty", "no-number", "negative", "too-long", "longer-than-said", "endless-line"],
)
def test_what_is_no_such_reply_is_refused(data: bytes) -> None:
    with pytest.raises(redis_exceptions.InvalidResponse):
        replies(data).next(bytearray_room)


@given(st.binary(min_size=1, max_size=50), st.data())
def test_a_reply_that_breaks_off_is_a_lost_connection(value: bytes, data: st.DataObject) -> None:
    whole = wire(value)
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(redis_exceptions.ConnectionError, match="closed"):
        replies(part).next(bytearray_room)


def test_more_than_was_asked_for_is_refused() -> None:
    reading = replies(wire(b"x") + b"+late\r\n")
    assert whole(reading.next(bytearray_room)) == b"x"
    with pytest.raises(redis_exceptions.InvalidResponse):
        reading.end()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_reply_or_an_error_of_redis(data: bytes) -> None:
    reading = replies(data)
    for _ in range(4):
        try:
            reading.next(bytearray_room)
        except redis_exceptions.RedisError:
            return
