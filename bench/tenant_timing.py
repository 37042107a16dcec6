"""How well the time of a Match tells what another tenant has stored.

    python -m bench.tenant_timing [--calls 2000]

Tenant blue asks for pages by their keys: pages that tenant red has stored, pages that nobody has,
and pages of its own. The three kinds are asked in turn, in an order that is drawn anew each round,
over one connection to a reload server with the embedded store. Beside the ratio of the medians
stands how often a stored page is told from an absent one by the time alone (the area under the ROC
curve): one half is chance. Own pages say how large a difference this method would find.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc

from lexico_lab.record import finish, gate, machine, table
from lexico_proto.v1 import reload_pb2 as pb
from lexico_proto.v1 import reload_pb2_grpc as pb_grpc
from lexico_services.ending import Ending
from lexico_services.reload.child import ReloadChild
from lexico_services.settings import Settings
from lexico_store import open_store, reachable_store
from lexico_store.scopes import tenant_scope
from lexico_store.settings import StoreSettings

PAGES: Final = 64
"""Of each kind, all asked in one Match: a difference adds up."""
START_S: Final = 120.0
KINDS: Final = ("another's", "nobody's", "own")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000, help="of each kind")
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate("tests/integration/test_tenants_apart.py")
    described = machine()
    seconds = measure(options.calls)
    nobody = seconds["nobody's"]
    rows = [
        {
            "pages": kind,
            "median us": statistics.median(seconds[kind]) * 1e6,
            "over nobody's": statistics.median(seconds[kind]) / statistics.median(nobody),
            "told apart": told_apart(seconds[kind], nobody),
        }
        for kind in KINDS
    ]
    print(table(rows))
    result = {
        "calls": options.calls,
        "pages": PAGES,
        "another_over_nobody": rows[0]["over nobody's"],
        "told_apart": rows[0]["told apart"],
        # What half of the absent ones are told from the other half: what chance gives here.
        "chance": told_apart(nobody[::2], nobody[1::2]),
        "rows": rows,
    }
    finish("tenant_timing", result, described)


def measure(calls: int) -> dict[str, list[float]]:
    """Seconds of each Match, by kind."""
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    order = random.Random(0)
    keys = {kind: [order.randbytes(32) for _ in range(PAGES)] for kind in KINDS}
    with tempfile.TemporaryDirectory() as scratch:
        tokens = Path(scratch) / "tokens"
        tokens.write_text("red:token-of-tenant-red\nblue:token-of-tenant-blue\n")
        with reachable_store("embedded://", StoreSettings()) as url, open_store(url) as store:
            for tenant, kind in (("red", "another's"), ("blue", "own")):
                for key in keys[kind]:
                    store.commit(tenant_scope(tenant), key, [b"frame" * 100], 3600.0)
            options = {"listen.token_file": tokens, "reload.port": 0}
            child = ReloadChild(Settings.of(options, None, {}).with_store(url))
            try:
                address = child.address(threading.Event(), START_S)
                with grpc.insecure_channel(str(address)) as channel:
                    stub = pb_grpc.ReloadStub(channel)
                    for number in range(calls + calls // 10):
                        for kind in order.sample(KINDS, len(KINDS)):
                            took = _match(stub, keys[kind])
                            if number >= calls // 10:  # before: warming up
                                seconds[kind].append(took)
            finally:
                child.stop(Ending(10.0))
    return seconds


def _match(stub: pb_grpc.ReloadStub, keys: Sequence[bytes]) -> float:
    metadata = (("authorization", "Bearer token-of-tenant-blue"),)
    request = pb.MatchRequest(page_keys=keys)
    started = time.perf_counter()
    stub.Match(request, metadata=metadata, timeout=60.0)
    return time.perf_counter() - started


def told_apart(some: Sequence[float], others: Sequence[float]) -> float:
    """Share of pairs of which the first is the larger, ties half: 0.5 where nothing is told."""
    ordered = sorted(others)
    larger = sum((bisect_left(ordered, each) + bisect_right(ordered, each)) / 2 for each in some)
    return larger / (len(some) * len(ordered))


if __name__ == "__main__":
    main()
