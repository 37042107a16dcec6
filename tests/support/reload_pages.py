"""Pages and messages for a reload server, and the errors that its calls end with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from lexico_codec.frame import HEADER_BYTES, FrameHeader, pack_frame
from lexico_proto import errors
from lexico_proto.v1 import dictionaries_pb2 as dict_pb
from lexico_services.auth import DEFAULT_TENANT
from lexico_store import MemoryStore, PageStore
from lexico_store.scopes import tenant_scope
from tests.support.services import error_of

SCOPE = tenant_scope(DEFAULT_TENANT)
KEYS = [bytes([i]) * 32 for i in range(20)]
TTL_S = 3600.0
MIB = 1 << 20


def frame_of(page: int, group: int, frame_bytes: int = 300, codec_id: int = 1) -> bytes:
    """A sound frame of that length, whose body says which it is."""
    header = FrameHeader(
        codec_id=codec_id,
        dtype="float32",
        sink_tokens=0,
        first_layer=group,
        layers=1,
        kv_heads=1,
        head_dim=1,
        first_token=page,
        tokens=1,
        page_key=KEYS[page],
        dictionary=bytes(32),
        geometry=bytes(16),
    )
    return pack_frame(header, f"{page}.{group} ".encode().ljust(frame_bytes - HEADER_BYTES, b"#"))


def fill(store: PageStore, page: int, groups: int = 3, frame_bytes: int = 300) -> None:
    frames = [frame_of(page, group, frame_bytes) for group in range(groups)]
    store.commit(SCOPE, KEYS[page], frames, TTL_S)


def filled(pages: int, groups: int = 3, frame_bytes: int = 300) -> MemoryStore:
    """A store with pages whose frames say which they are."""
    store = MemoryStore()
    for page in range(pages):
        fill(store, page, groups, frame_bytes)
    return store


@contextmanager
def raises(expected: type[errors.LexicoError]) -> Iterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert type(error_of(caught.value)) is expected, caught.value.details()


async def stream_of(messages: list[Any]) -> AsyncIterator[Any]:
    for message in messages:
        yield message


def registration(
    data: bytes, digest: bytes, size: int | None = None
) -> list[dict_pb.RegisterRequest]:
    header = dict_pb.RegisterHeader(
        digest=digest, artefact_bytes=len(data) if size is None else size
    )
    half = len(data) // 2
    return [
        dict_pb.RegisterRequest(header=header),
        dict_pb.RegisterRequest(data=data[:half]),
        dict_pb.RegisterRequest(data=data[half:]),
    ]
