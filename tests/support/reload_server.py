"""A reload server alone, with bounds of a test's choice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lexico_proto.v1 import dictionaries_pb2_grpc, reload_pb2_grpc
from lexico_proto.v1 import reload_pb2 as pb
from lexico_services.config import ListenConfig, ReloadConfig
from lexico_services.reload.server import ReloadServer
from lexico_store import PageStore
from tests.support.channels import service_channel
from tests.support.waiting import PATIENCE_S, until


@dataclass
class Reload:
    """A reload server and stubs for it."""

    server: ReloadServer
    reload: reload_pb2_grpc.ReloadStub
    dictionaries: dictionaries_pb2_grpc.DictionariesStub

    async def get(self, keys: Sequence[bytes], groups: int = 1) -> list[pb.GetResponse]:
        request = pb.GetRequest(page_keys=keys, groups=groups)
        return [part async for part in self.reload.Get(request, timeout=PATIENCE_S)]


@asynccontextmanager
async def running(store: PageStore, **bounds: object) -> AsyncIterator[Reload]:
    times = {"match_timeout_s": PATIENCE_S, "max_stream_s": PATIENCE_S}
    config = ReloadConfig(**{**times, **bounds})  # type: ignore[arg-type]
    server = ReloadServer(store, ListenConfig(drain_s=1.0), config)
    await server.start()
    target = f"127.0.0.1:{server.port}"
    async with service_channel(target) as channel:
        yield Reload(
            server,
            reload_pb2_grpc.ReloadStub(channel),
            dictionaries_pb2_grpc.DictionariesStub(channel),
        )
    await server.drain()
    assert server.buffers.used == 0


async def nothing_buffered(services: Reload) -> None:
    buffers = services.server.buffers
    await until(lambda: buffers.used == 0, "no buffered byte", lambda: buffers.used)
