"""The short way to write and read a Put's messages says exactly what protobuf says."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from lexico_codec.put_messages import (
    DataMessage,
    Malformed,
    PageEnd,
    PutPart,
    header_message,
    page_end_message,
    parse_put,
)
from lexico_proto.errors import InvalidInput
from lexico_proto.limits import PIECE_BYTES
from lexico_proto.v1 import offload_pb2 as pb


def by_protobuf(message: bytes) -> PutPart:
    try:
        request = pb.PutRequest.FromString(message)
    except DecodeError:
        return Malformed("")
    part = request.WhichOneof("part")
    if part is None:
        return Malformed("")
    if part == "page_end":
        return PageEnd(request.page_end.page, request.page_end.checksum)
    return memoryview(request.data) if part == "data" else request.header


def agree(message: bytes) -> None:
    ours, theirs = parse_put(message), by_protobuf(message)
    assert type(ours) is type(theirs)
    if not isinstance(ours, Malformed):
        assert ours == theirs


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 1 << 20])
def test_data_of_every_length_class(size: int) -> None:
    agree(pb.PutRequest(data=bytes(size)).SerializeToString())


@given(st.binary(max_size=300))
def test_any_bytes(message: bytes) -> None:
    agree(message)


@given(st.binary(max_size=300))
def test_any_bytes_after_the_data_tag(rest: bytes) -> None:
    agree(b"\x12" + rest)


@given(data=st.binary(max_size=200), more=st.binary(max_size=20))
def test_data_with_something_behind_it(data: bytes, more: bytes) -> None:
    agree(pb.PutRequest(data=data).SerializeToString() + more)


def test_the_other_parts() -> None:
    agree(pb.PutRequest(header=pb.PutHeader(token_ids=[1, 2])).SerializeToString())
    agree(pb.PutRequest(page_end=pb.PageEnd(page=3, checksum=4)).SerializeToString())
    both = pb.PutRequest(data=b"x").SerializeToString()
    agree(both + pb.PutRequest(page_end=pb.PageEnd(page=1)).SerializeToString())


def test_the_payload_is_not_copied() -> None:
    message = pb.PutRequest(data=bytes(100)).SerializeToString()
    part = parse_put(message)
    assert isinstance(part, memoryview)
    assert part.obj is message


def written(data: bytes) -> bytes:
    message = DataMessage(len(data))
    message.payload[:] = data
    return message.seal()


@given(st.binary(min_size=1, max_size=70_000))
def test_data_is_written_as_protobuf_writes_it(data: bytes) -> None:
    assert written(data) == pb.PutRequest(data=data).SerializeToString()


@pytest.mark.parametrize("size", [1, 127, 128, 16383, 16384, PIECE_BYTES - 1, PIECE_BYTES])
def test_data_of_every_length_class_is_written(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    assert written(data[:size]) == pb.PutRequest(data=data[:size]).SerializeToString()


@given(
    page=st.integers(0, (1 << 32) - 1),
    checksum=st.integers(0, (1 << 64) - 1),
    tokens=st.lists(st.integers(0, (1 << 32) - 1), max_size=20),
)
def test_the_other_parts_come_back(page: int, checksum: int, tokens: list[int]) -> None:
    end, header = PageEnd(page, checksum), pb.PutHeader(token_ids=tokens)
    assert parse_put(page_end_message(end)) == end
    assert parse_put(header_message(header)) == header
    agree(page_end_message(end))
    agree(header_message(header))


def test_a_data_message_has_a_payload_that_fits() -> None:
    for size in (0, PIECE_BYTES + 1):
        with pytest.raises(InvalidInput):
            DataMessage(size)


def test_a_sealed_message_is_not_copied_and_not_written_any_more() -> None:
    message = DataMessage(100)
    payload = message.payload
    sealed = message.seal()
    assert message.seal() is sealed
    with pytest.raises(ValueError, match="released"):
        payload[0] = 1


def test_a_writer_that_is_still_there_cannot_change_a_sealed_message() -> None:
    message = DataMessage(100)
    message.payload[:] = bytes(100)
    array, view = np.frombuffer(message.payload, np.uint8), memoryview(message.payload)
    sealed = message.seal()
    array[:] = 7
    view[:50] = bytes(50)
    assert parse_put(sealed) == bytes(100)


def test_a_message_that_the_collector_frees_unsent_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one does that hangs on an exception. Python 3.13 prints what a finaliser raises."""
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    for _ in range(10):
        cycle: list[object] = [DataMessage(100)]
        cycle.append(cycle)
        del cycle
    gc.collect()
    assert said == []
