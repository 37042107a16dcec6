"""What TLS costs reload streams of 64 MiB.

    python -m bench.fleet.tls [--rounds 20]

Two reload servers over one store, one of them behind TLS with a certificate of its own for this
run. Both sides read the same two pages of 32 MiB, in one process, over connections that stay.

- `stream`: the frames as the client's transport gives them: nothing looks at the bytes. `tls_cost`
  is of this one: the share of the plain stream's throughput that is lost, which is 1 - plain time
  over time with TLS.
- `load`: `Client.load` into memory, as a node does it: frames are verified and decoded.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from bench.fleet.rounds import interleaved, spread
from bench.fleet.servers import SCOPE, TTL_S, embedded_store, reload_servers
from bench.wire_reload import PAGES, page_frames
from lexico_client import Client, GrpcTransport, Tls
from lexico_codec.geometry import Geometry
from lexico_codec.spec import make_spec
from lexico_lab.record import finish, gate, machine, table
from lexico_proto.v1 import reload_pb2 as pb
from tests.support.tls import certificate

TESTS: Final = ("tests/integration/test_reload.py", "tests/integration/test_tls.py")
GEOMETRY: Final = Geometry(layers=32, kv_heads=8, head_dim=128, dtype="bfloat16")
"""Llama-3.1-8B: a page of 256 tokens is 32 MiB."""
PATIENCE_S: Final = 120.0


def measure(rounds: int) -> list[dict[str, Any]]:
    """A row for each way to read, with the costs of its rounds.

    Raises:
        SystemExit: a side did not give every byte.
    """
    spec = make_spec(weights=b"w" * 32, geometry=GEOMETRY, codec="raw", page_tokens=256)
    frames = page_frames(spec)
    whole = sum(len(frame) for page in frames.values() for frame in page)
    request = pb.GetRequest(page_keys=list(frames), groups=spec.groups)
    ids = np.arange(PAGES * spec.page_tokens, dtype=np.uint32)
    memory = torch.empty(PAGES, GEOMETRY.layers, *spec.group_shape(0)[1:], dtype=torch.bfloat16)

    def view(page: int, group: int) -> torch.Tensor:
        layers = spec.group_range(group)
        return memory[page, layers.start : layers.stop]

    sides: dict[str, Callable[[], None]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, store = stack.enter_context(embedded_store())
        for key, groups in frames.items():
            store.commit(SCOPE, key, groups, TTL_S)
        pair = certificate(folder, "reload")
        secured = dict(zip(("tls.certificate", "tls.key"), pair, strict=True))
        addresses = stack.enter_context(reload_servers(url, [{}, secured]))
        runner = stack.enter_context(asyncio.Runner())
        for name, address, tls in zip(
            ("plain", "tls"), addresses, (None, Tls(ca=pair[0])), strict=True
        ):
            transport = GrpcTransport(address, tls=tls)
            stack.callback(partial(_close, runner, transport))
            client = stack.enter_context(Client(reload=address, tls=tls))

            def stream(own: GrpcTransport = transport) -> None:
                async def received() -> int:
                    messages = own.get(request, PATIENCE_S)
                    return sum([len(message.frame.data) async for message in messages])

                if (came := runner.run(received())) != whole:
                    raise SystemExit(f"a stream gave {came} of {whole} bytes")

            def load(own: Client = client) -> None:
                loaded = own.load(spec, ids, lambda _: view, timeout=PATIENCE_S)
                if loaded.pages != PAGES:
                    raise SystemExit(f"a load gave {loaded.pages} of {PAGES} pages")

            sides |= {f"stream {name}": stream, f"load {name}": load}
        seconds = interleaved(sides, rounds)
    return [row_of(way, seconds, whole) for way in ("stream", "load")]


def _close(runner: asyncio.Runner, transport: GrpcTransport) -> None:
    runner.run(transport.close())


def row_of(way: str, seconds: dict[str, list[float]], size: int) -> dict[str, Any]:
    """Throughputs of one way to read, and the share of it that TLS costs."""
    plain, tls = seconds[f"{way} plain"], seconds[f"{way} tls"]
    return {
        "way": way,
        "plain MB/s": size / float(np.median(plain)) / 1e6,
        "tls MB/s": size / float(np.median(tls)) / 1e6,
        **spread([1 - bare / secured for bare, secured in zip(plain, tls, strict=True)]),
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate(*TESTS)
    described = machine()
    rows = measure(options.rounds)
    print(table(rows))
    result = {
        "tls_cost": rows[0]["median"],
        "load_tls_cost": rows[1]["median"],
        "rounds": options.rounds,
        "rows": rows,
    }
    finish("fleet_tls", result, described)


if __name__ == "__main__":
    main()
