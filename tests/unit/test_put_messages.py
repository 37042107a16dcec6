"""The short way to read a Put's messages says exactly what protobuf says."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from lexico_proto.v1 import offload_pb2 as pb
from lexico_services.offload.ingress import PageEnd
from lexico_services.offload.put_messages import Malformed, PutPart, parse_put


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
