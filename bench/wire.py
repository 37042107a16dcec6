"""Raw pages through ingress, Ray and Redis, and stored frames back out through the reload server,
each against plain gRPC streaming of the same bytes.

    python -m bench.wire [--pages 8] [--rounds 6] [--streams 1 4]

Both sides take the same messages from the same client code in one interleaved run. The peer is a
grpc.aio server in a process of its own that counts the bytes and keeps none. Reloads are in
bench/wire_reload.py.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import threading
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from typing import Any

import grpc
import numpy as np
import psutil

from bench.wire_reload import compare_reload
from lexico_codec.checksum import Checksum
from lexico_codec.geometry import Geometry
from lexico_codec.keys import page_keys
from lexico_codec.spec import CacheSpec, make_spec
from lexico_codec.wire import spec_to_wire
from lexico_lab.record import finish, gate, machine, table
from lexico_proto.limits import MESSAGE_BYTES
from lexico_proto.v1 import offload_pb2 as pb
from lexico_proto.v1 import offload_pb2_grpc as pb_grpc
from lexico_services.config import ListenConfig, OffloadConfig
from lexico_services.offload.server import OffloadServer
from lexico_store import reachable_store
from lexico_worker.config import EncoderConfig
from lexico_worker.ray_runtime import RayConfig

CHUNK = 1 << 20
OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
)
GEOMETRY = Geometry(layers=32, kv_heads=8, head_dim=128, dtype="bfloat16")
"""Llama-3.1-8B: a page of 256 tokens is 32 MiB."""


STORE_BYTES = 768 << 20


class Sink(pb_grpc.OffloadServicer):
    """Counts bytes."""

    async def Put(
        self, request_iterator: AsyncIterator[pb.PutRequest], context: Any
    ) -> pb.PutResponse:
        async for request in request_iterator:
            len(request.data)
        return pb.PutResponse()


def run_sink(pipe: Connection) -> None:
    """The peer's process: sends its port, then serves until it is ended."""

    async def serve() -> None:
        server = grpc.aio.server(options=OPTIONS)
        pb_grpc.add_OffloadServicer_to_server(Sink(), server)
        pipe.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(serve())


class Load:
    """Streams of pages: the same bytes to either side, every page a new one."""

    def __init__(self, pages: int) -> None:
        self.spec: CacheSpec = make_spec(
            weights=b"w" * 32, geometry=GEOMETRY, codec="raw", page_tokens=256
        )
        self._pages = pages
        self._count = 0
        page = np.random.default_rng(0).standard_normal(self.spec.page_bytes // 4, np.float32)
        self._page = (page.view(np.uint32) >> 16).astype(np.uint16).repeat(2).tobytes()
        checksum = Checksum()
        checksum.add(self._page)
        self._checksum = checksum.value()

    @property
    def bytes(self) -> int:
        """Bytes of one stream."""
        return self._pages * self.spec.page_bytes

    def messages(self) -> AsyncIterator[pb.PutRequest]:
        """One stream: a header and pages that no store has yet."""
        self._count += 1
        tokens = self.spec.page_tokens * self._pages
        ids = np.arange(self._count * tokens, (self._count + 1) * tokens)
        header = pb.PutHeader(
            spec=spec_to_wire(self.spec),
            token_ids=ids.tolist(),
            pages=range(self._pages),
            page_keys=page_keys(self.spec, ids),
        )

        async def stream() -> AsyncIterator[pb.PutRequest]:
            yield pb.PutRequest(header=header)
            for page in range(self._pages):
                for at in range(0, len(self._page), CHUNK):
                    yield pb.PutRequest(data=self._page[at : at + CHUNK])
                yield pb.PutRequest(page_end=pb.PageEnd(page=page, checksum=self._checksum))

        return stream()


async def move(address: str, load: Load, streams: int) -> tuple[float, list[pb.PutResponse]]:
    """Bytes a second of so many streams at once, and their answers."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        stub = pb_grpc.OffloadStub(channel)
        await channel.channel_ready()
        started = time.perf_counter()
        answers = await asyncio.gather(*(stub.Put(load.messages()) for _ in range(streams)))
        return streams * load.bytes / (time.perf_counter() - started), list(answers)


class PeakMemory:
    """Peak of a process's unshared memory over the block, sampled every 20 ms."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self.idle = self.peak = int(self._process.memory_full_info().uss)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, int(self._process.memory_full_info().uss))

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


def compare(addresses: dict[str, str], load: Load, streams: int, rounds: int) -> dict[str, Any]:
    """Interleaved rounds, the order turned each time."""
    rates: dict[str, list[float]] = {"grpc": [], "offload": []}
    seconds: dict[str, float] = {}
    for number in range(rounds + 1):
        for side in sorted(addresses, reverse=bool(number % 2)):
            rate, answers = asyncio.run(move(addresses[side], load, streams))
            if number == 0:  # warms both sides
                continue
            rates[side].append(rate)
            if side == "offload":
                for answer in answers:
                    for field, value in answer.seconds.ListFields():
                        seconds[field.name] = seconds.get(field.name, 0.0) + value
    shares = [ours / peer for ours, peer in zip(rates["offload"], rates["grpc"], strict=True)]
    moved = rounds * streams * load.bytes
    stages = {name: seconds[name] for name in ("receive", "place", "encode", "commit")}
    whole = sum(stages.values())
    return {
        "streams": streams,
        "grpc MB/s": statistics.median(rates["grpc"]) / 1e6,
        "offload MB/s": statistics.median(rates["offload"]) / 1e6,
        "share": statistics.median(shares),
        "share min": min(shares),
        "share max": max(shares),
        **{f"{name} share": value / whole for name, value in stages.items()},
        **{f"{name} s/GB": value / moved * 1e9 for name, value in seconds.items()},
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=8, help="pages of 32 MiB a stream")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate(
            "tests/integration/test_put*.py",
            "tests/integration/test_reload.py",
            "tests/contract/test_codec_raw.py",
        )
    described, load = machine(), Load(options.pages)
    here, there = multiprocessing.get_context("spawn").Pipe()
    sink = multiprocessing.get_context("spawn").Process(target=run_sink, args=(there,))
    sink.start()
    try:
        # A store in service is full: it is filled first, and then evicts a page for each it takes.
        with reachable_store(f"embedded://?maxmemory={STORE_BYTES}") as url:
            server = OffloadServer(
                ListenConfig(),
                OffloadConfig(),
                EncoderConfig(url, page_ttl_s=600),
                RayConfig(),
            )
            try:
                server.start()
                addresses = {
                    "grpc": f"127.0.0.1:{here.recv()}",
                    "offload": f"127.0.0.1:{server.port}",
                }
                for _ in range(STORE_BYTES // load.bytes + 1):
                    asyncio.run(move(addresses["offload"], load, 1))
                memory = PeakMemory(server.usage()["pid"])
                rows = [compare(addresses, load, n, options.rounds) for n in options.streams]
                memory.end()
                usage = server.usage()
                reloads = compare_reload(url, load.spec, 10 * options.rounds)
            finally:
                server.stop()
    finally:
        sink.terminate()
        sink.join()
    print(table(rows))
    print(table([reloads]))
    ratio = (memory.peak - memory.idle) / usage["peak"]
    print(
        f"ingress: {memory.idle / 2**20:.0f} MiB idle, {memory.peak / 2**20:.0f} MiB peak, "
        f"{usage['peak'] / 2**20:.0f} of {usage['limit'] / 2**20:.0f} MiB in flight at most"
    )
    finish(
        "wire",
        {
            "offload_share_of_grpc": rows[0]["share"],
            "reload_share_of_grpc": reloads["share"],
            "ingress_peak_over_inflight": ratio,
            "inflight_limit_bytes": usage["limit"],
            "inflight_peak_bytes": usage["peak"],
            "rows": rows,
            "reloads": reloads,
        },
        described,
    )


if __name__ == "__main__":
    main()
