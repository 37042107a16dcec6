"""Stored frames out of Redis through the reload server, against plain gRPC streaming of the same.

Part of bench.wire. The peer is a grpc.aio server in a process of its own that holds the frames as
messages in memory and does nothing but send them. One client counts the bytes of either.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc
import numpy as np
import torch

from lexico_codec.keys import page_keys
from lexico_codec.pages import encode_group
from lexico_codec.spec import CacheSpec
from lexico_proto.limits import MESSAGE_BYTES, PIECE_BYTES
from lexico_proto.v1 import reload_pb2 as pb
from lexico_proto.v1 import reload_pb2_grpc as pb_grpc
from lexico_services.auth import DEFAULT_TENANT
from lexico_services.ending import Ending
from lexico_services.reload.child import ReloadChild
from lexico_services.settings import Settings
from lexico_store import open_store
from lexico_store.scopes import tenant_scope

OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
)
PAGES = 2
"""Of 32 MiB."""


def page_frames(spec: CacheSpec) -> dict[bytes, list[bytes]]:
    """Frames of two pages by their keys, the same in every process."""
    ids = np.arange(PAGES * spec.page_tokens, dtype=np.uint32)
    generator, frames = torch.Generator().manual_seed(0), {}
    for page, key in enumerate(page_keys(spec, ids)):
        frames[key] = [
            bytes(
                encode_group(
                    spec,
                    key,
                    page,
                    group,
                    torch.randn(spec.group_shape(group), generator=generator).bfloat16(),
                )
            )
            for group in range(spec.groups)
        ]
    return frames


class Source(pb_grpc.ReloadServicer):
    """Sends messages that it holds."""

    def __init__(self, spec: CacheSpec) -> None:
        pages = list(page_frames(spec).values())
        self._messages = [
            pb.GetResponse(
                frame=pb.FramePart(
                    page=page,
                    group=group,
                    frame_bytes=len(frames[group]),
                    data=frames[group][at : at + PIECE_BYTES],
                )
            )
            for group in range(spec.groups)
            for page, frames in enumerate(pages)
            for at in range(0, len(frames[group]), PIECE_BYTES)
        ]

    async def Get(self, request: pb.GetRequest, context: Any) -> AsyncIterator[pb.GetResponse]:
        for message in self._messages:
            yield message


def run_source(pipe: Connection, spec: CacheSpec) -> None:
    """The peer's process: sends its port, then serves until it is ended."""

    async def serve() -> None:
        server = grpc.aio.server(options=OPTIONS)
        pb_grpc.add_ReloadServicer_to_server(Source(spec), server)
        pipe.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(serve())


@contextmanager
def servers(store_url: str, spec: CacheSpec) -> Iterator[dict[str, str]]:
    """Addresses of the peer and of the reload server, with the frames in the store."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    source = context.Process(target=run_source, args=(there, spec))
    source.start()
    settings = Settings.of({"reload.port": 0}).with_store(store_url)
    reload = ReloadChild(settings)
    try:
        with open_store(store_url) as store:
            for key, frames in page_frames(spec).items():
                store.commit(tenant_scope(DEFAULT_TENANT), key, frames, 600)
        address = reload.address(threading.Event(), settings.listen_reload.start_s)
        if address is None:
            raise SystemExit("the reload server did not start")
        yield {"grpc": f"127.0.0.1:{here.recv()}", "reload": address}
    finally:
        reload.stop(Ending(10.0))
        source.terminate()
        source.join()


async def fetch(address: str, request: pb.GetRequest) -> tuple[float, int]:
    """Seconds of one Get, and the bytes of frames that came."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        stub = pb_grpc.ReloadStub(channel)
        await channel.channel_ready()
        started, received = time.perf_counter(), 0
        async for message in stub.Get(request):
            received += len(message.frame.data)
        return time.perf_counter() - started, received


def compare_reload(store_url: str, spec: CacheSpec, rounds: int) -> dict[str, Any]:
    """Interleaved rounds, the order turned each time.

    Raises:
        SystemExit: a side did not give every byte.
    """
    frames = page_frames(spec)
    request = pb.GetRequest(page_keys=list(frames), groups=spec.groups)
    whole = sum(len(frame) for page in frames.values() for frame in page)
    seconds: dict[str, list[float]] = {"grpc": [], "reload": []}
    with servers(store_url, spec) as addresses:
        for number in range(rounds + 1):
            for side in sorted(addresses, reverse=bool(number % 2)):
                took, received = asyncio.run(fetch(addresses[side], request))
                if received != whole:
                    raise SystemExit(f"{side} gave {received} of {whole} bytes")
                if number:  # the first warms both sides
                    seconds[side].append(took)
    shares = [peer / ours for ours, peer in zip(seconds["reload"], seconds["grpc"], strict=True)]
    return {
        "frames MiB": whole / 2**20,
        "grpc MB/s": whole / statistics.median(seconds["grpc"]) / 1e6,
        "reload MB/s": whole / statistics.median(seconds["reload"]) / 1e6,
        "share": statistics.median(shares),
        "share min": min(shares),
        "share max": max(shares),
    }
