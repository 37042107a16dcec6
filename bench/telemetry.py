"""What metrics and traces cost: two services side by side, one with both and one with neither.

    python -m bench.telemetry [--rounds 40] [--starts 4] [--pages 4]

Both are `lexico serve` in processes of their own, with codec raw: nothing but the way of the bytes,
of which telemetry is the largest part that it can be. One counts nothing and traces nothing; the
other counts, is scraped, and has 1 % of its traces sampled and sent to a collector. The node is
this process, with and without telemetry of its own. Offloads and loads are interleaved, the order
turned every round. Both services use one store, and are started several times, in turned order: two
processes of the same program may differ by more than what is looked for, as `cost by start` shows.
What single steps cost is timed beside.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import tempfile
import threading
import time
import timeit
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch

from examples.two_nodes.service import Service
from lexico_client import Client
from lexico_codec.geometry import Geometry
from lexico_codec.spec import CacheSpec, make_spec
from lexico_lab.record import finish, gate, machine, table
from lexico_proto import metrics as m
from lexico_proto import tracing
from lexico_proto.metrics import Metrics
from lexico_proto.prometheus import registry_of
from lexico_store import reachable_store

SIDES: Final = ("none", "telemetry")
SAMPLE: Final = 0.01
SCRAPE_EVERY_S: Final = 5.0
GEOMETRY: Final = Geometry(layers=32, kv_heads=8, head_dim=128, dtype="bfloat16")
"""Llama-3.1-8B: a page of 64 tokens is 8 MiB."""

COMMON: Final = """
[offload]
max_inflight_bytes = "96 MiB"
[ray]
object_store_bytes = "256 MiB"
[store]
url = "{store}"
"""
NONE: Final = COMMON + "[metrics]\ncount = false\n"
TELEMETRY: Final = (
    COMMON
    + '[metrics]\naddress = "127.0.0.1:0"\n[tracing]\nsample = 0.01\nendpoint = "{endpoint}"\n'
)
STORE: Final = "embedded://?maxmemory=256mb"
WARM_ROUNDS: Final = 8
"""They fill store and shared memory, whose first use is slower."""


def watch(pipe: Connection) -> None:
    """A process of its own: takes spans, and reads the metrics of whatever it is told last. Sends
    its endpoint; and at the end, when it is told None, how many spans and pages it had.
    """
    import grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc

    spans = scrapes = 0

    class Collector(pb_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            nonlocal spans
            spans += sum(len(s.spans) for r in request.resource_spans for s in r.scope_spans)
            return pb.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    pb_grpc.add_TraceServiceServicer_to_server(Collector(), server)  # type: ignore[no-untyped-call]
    pipe.send(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    addresses = pipe.recv()
    while addresses is not None:
        for address in addresses:
            with suppress(OSError), urllib.request.urlopen(f"http://{address}/metrics") as page:
                page.read()
                scrapes += 1
        if pipe.poll(SCRAPE_EVERY_S):
            addresses = pipe.recv()
    pipe.send((spans, scrapes))


class Node:
    """One side: a client and its service."""

    def __init__(self, service: Service, provider: Any, folder: Path) -> None:
        metrics = Metrics()
        metrics.configure(max_open=0, count=provider is not None)
        self._provider = provider
        self._client = Client(
            offload=service.offload,
            reload=service.reload,
            dictionaries_dir=folder,
            metrics=metrics,
        )

    @contextmanager
    def telling(self) -> Iterator[Client]:
        """Its client, with its telemetry on or off."""
        if self._provider is None:
            tracing.stop()
        else:
            tracing.use(self._provider, SAMPLE)
        yield self._client

    def close(self) -> None:
        self._client.close()


class Prompts:
    """Prompts that no store has yet, with one cache."""

    def __init__(self, pages: int) -> None:
        self.spec: CacheSpec = make_spec(
            weights=b"w" * 32, geometry=GEOMETRY, codec="raw", page_tokens=64
        )
        self.pages = pages
        self._count = 0
        groups = [self.spec.group_shape(group) for group in range(self.spec.groups)]
        self.cache = [torch.randn(shape).bfloat16() for shape in groups]
        self.memory = [[torch.empty_like(group) for group in self.cache] for _ in range(pages)]

    @property
    def bytes(self) -> int:
        """Of one prompt's cache."""
        return self.pages * self.spec.page_bytes

    def next(self) -> list[int]:
        """Token ids."""
        self._count += 1
        tokens = self.pages * self.spec.page_tokens
        return list(range(self._count * tokens, (self._count + 1) * tokens))


def moved(node: Node, prompts: Prompts) -> tuple[float, float]:
    """Bytes a second of an offload, and of a load of the same prompt.

    Raises:
        SystemExit: not every page came.
    """
    ids, spec = prompts.next(), prompts.spec
    with node.telling() as client:
        began = time.perf_counter()
        report = client.offload(spec, ids, lambda _, group: prompts.cache[group])
        stored = time.perf_counter()
        loaded = client.load(spec, ids, lambda _: lambda page, group: prompts.memory[page][group])
        ended = time.perf_counter()
    if report.bytes_sent != prompts.bytes or loaded.pages != prompts.pages:
        raise SystemExit(f"not every page came: {report} {loaded}")
    return prompts.bytes / (stored - began), prompts.bytes / (ended - stored)


Rates = dict[str, list[tuple[float, float]]]
"""Side → bytes a second of each round, of its offload and its load."""


def measure(nodes: dict[str, Node], prompts: Prompts, rounds: int, rates: Rates) -> None:
    """Interleaved rounds, the order turned each time."""
    for number in range(-WARM_ROUNDS, rounds):
        for side in SIDES[:: 1 if number % 2 else -1]:
            found = moved(nodes[side], prompts)
            if number >= 0:
                rates[side].append(found)


def rows_of(starts: list[Rates]) -> list[dict[str, Any]]:
    """What the rounds of every start say."""
    rows = []
    for place, what in enumerate(("offload", "reload")):
        pairs = [
            [(a[place], b[place]) for a, b in zip(*(rates[side] for side in SIDES), strict=True)]
            for rates in starts
        ]
        none, told = zip(*(pair for start in pairs for pair in start), strict=True)
        ratios = [b / a for a, b in zip(none, told, strict=True)]
        low, high = spread(ratios)
        rows.append(
            {
                "what": what,
                "none MB/s": statistics.median(none) / 1e6,
                "telemetry MB/s": statistics.median(told) / 1e6,
                "cost": 1 - statistics.median(ratios),
                "cost low": 1 - high,
                "cost high": 1 - low,
                "cost by start": [
                    round(1 - statistics.median(b / a for a, b in start), 4) for start in pairs
                ],
            }
        )
    return rows


def spread(ratios: list[float], draws: int = 2000) -> tuple[float, float]:
    """Within what the median of so many rounds lies, 19 times in 20 (bootstrap)."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[draws // 40], medians[-draws // 40]


def steps(provider: Any) -> dict[str, float]:
    """Microseconds of single steps, the best of five runs."""
    metrics = Metrics()
    bound, seconds = metrics.counter(m.SENT_BYTES), metrics.histogram(m.CALL_SECONDS, "get")
    changes = metrics.counter(m.LEASES, "taken")

    def span() -> None:
        with tracing.span("lexico.get", pages=3):
            pass

    def answer() -> None:
        changes.add()
        metrics.take_changes(m.OF_ENCODERS)

    found = {
        "counter": _us(lambda: bound.add(3)),
        "counter by tenant": _us(lambda: metrics.counter(m.HIT_TOKENS, "red", "raw").add(3)),
        "histogram": _us(lambda: seconds.observe(0.01)),
        "answer of an encoder": _us(answer),
    }
    tracing.stop()
    found["span off"] = _us(span)
    tracing.use(provider, 0.0)
    found["span unsampled"] = _us(span)
    tracing.use(provider, 1.0)
    found["span sampled"] = _us(span, 2_000)
    tracing.stop()
    for family in (*m.OF_SERVERS, *m.OF_RELOAD):
        values = [sorted(label.values or {"red"})[0] for label in family.labels]
        if not family.buckets:
            metrics.counter(family, *values)
    from prometheus_client import generate_latest

    registry = registry_of(metrics)
    found["scrape"] = _us(lambda: generate_latest(registry), 50)
    return found


def _us(step: Callable[[], object], times: int = 20_000) -> float:
    return min(timeit.repeat(step, number=times, repeat=5)) / times * 1e6


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="of each start")
    parser.add_argument("--starts", type=int, default=4, help="of both services")
    parser.add_argument("--pages", type=int, default=4, help="pages of 8 MiB a prompt")
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate(
            "tests/unit/test_metrics.py",
            "tests/unit/test_tracing.py",
            "tests/integration/test_tracing.py",
        )
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    described = machine()
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    watcher = context.Process(target=watch, args=(there,))
    watcher.start()
    endpoint = here.recv()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    single = steps(TracerProvider(shutdown_on_exit=False))
    starts: list[Rates] = [{side: [] for side in SIDES} for _ in range(options.starts)]
    prompts = Prompts(options.pages)
    with reachable_store(STORE) as store:
        for number, rates in enumerate(starts):
            order = SIDES[:: -1 if number % 2 else 1]
            with running(order, store, endpoint, provider) as (nodes, addresses):
                here.send(addresses)
                measure(nodes, prompts, options.rounds, rates)
                here.send([])  # nobody to be scraped
    _shut_down(provider)
    here.send(None)
    spans, scrapes = here.recv()
    watcher.join()
    rows = rows_of(starts)
    print(table(rows))
    print(table([{"step": name, "us": cost} for name, cost in single.items()]))
    print(f"{spans} spans and {scrapes} pages of metrics were taken meanwhile")
    finish(
        "telemetry",
        {
            "cost": max(row["cost"] for row in rows),
            "rounds": options.rounds * options.starts,
            "rows": rows,
            "step_us": single,
            "spans": spans,
            "scrapes": scrapes,
        },
        described,
    )


@contextmanager
def running(
    order: tuple[str, ...], store: str, endpoint: str, provider: Any
) -> Iterator[tuple[dict[str, Node], list[str]]]:
    """Both sides, started in this order, and where the metrics of the one are that has some."""
    texts = [text.format(store=store, endpoint=endpoint) for text in (NONE, TELEMETRY)]
    files = dict(zip(SIDES, texts, strict=True))
    providers = dict(zip(SIDES, (None, provider), strict=True))
    nodes: dict[str, Node] = {}
    addresses: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for side in order:
            file = folder / f"{side}.toml"
            file.write_text(files[side])
            service = stack.enter_context(Service("--config", str(file)))
            nodes[side] = Node(service, providers[side], folder)
            stack.callback(nodes[side].close)
            found = service.addresses.items()
            addresses += [address for name, address in found if name.endswith("-metrics")]
        yield nodes, addresses


def _shut_down(provider: Any) -> None:
    ending = threading.Thread(target=provider.shutdown, daemon=True)
    ending.start()
    ending.join(tracing.FLUSH_S)


if __name__ == "__main__":
    main()
