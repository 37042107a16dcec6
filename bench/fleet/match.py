"""A Match of 4,000 pages, against raw pipelined EXISTS of the same keys.

    python -m bench.fleet.match [--pages 4000] [--rounds 20]

The peer is redis-py, its parser in C, on the store's own socket: one pipeline without MULTI, one
EXISTS for each name under which the store keeps a page. It knows nothing of tenants, generations or
lifetimes. Every page is there, so that no side can stop early. The sides are

- `store`: `PageStore.match` on the page keys, which one round trip to the server answers;
- `rpc`: the Match RPC on a request with the page keys, one round trip to the reload server, which
  is a process of its own, and from there one to the store's;
- `client`: `Client.match` on the token ids, as a node calls it: the page keys are hashed as well.
  `match_over_exists` is of this one;
- `… renewing`: as an offload asks: what is there has its life prolonged, which is a second command
  for each page. `renewing_match_over_exists` is of the RPC.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final

import grpc
import numpy as np
import redis

from bench.fleet.rounds import against, interleaved
from bench.fleet.servers import SCOPE, TTL_S, embedded_store, reload_servers, small_spec
from lexico_client import Client
from lexico_codec.keys import page_keys
from lexico_lab.record import finish, gate, machine, table
from lexico_proto.v1 import reload_pb2 as pb
from lexico_proto.v1 import reload_pb2_grpc as pb_grpc
from lexico_store import keys as names

TESTS: Final = ("tests/contract/test_store_embedded.py", "tests/integration/test_reload.py")


def measure(pages: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each side, with its ratios to EXISTS.

    Raises:
        SystemExit: a side did not find every page.
    """
    spec = small_spec()
    ids = np.arange(pages * spec.page_tokens, dtype=np.uint32)
    keys = page_keys(spec, ids)
    stored = [names.page(SCOPE, key) for key in keys]
    with embedded_store() as (url, store):
        for at, key in enumerate(keys):
            store.commit(SCOPE, key, [b"frame" * 100], TTL_S, page=at)
        raw = redis.Redis.from_url(url)

        def exists() -> int:
            pipeline = raw.pipeline(transaction=False)
            for name in stored:
                pipeline.exists(name)
            return sum(pipeline.execute())

        def looked(renew_s: float | None) -> int:
            return sum(store.match(SCOPE, spec.namespace, keys, renew_s=renew_s).present)

        with (
            reload_servers(url, [{}]) as (address,),
            grpc.insecure_channel(address) as channel,
            Client(reload=address) as client,
        ):
            stub = pb_grpc.ReloadStub(channel)

            def called(renew: bool) -> int:
                request = pb.MatchRequest(page_keys=keys, namespace=spec.namespace, renew=renew)
                return int(stub.Match(request, timeout=60.0).leading)

            sides: dict[str, Callable[[], int]] = {
                "exists": exists,
                "store": lambda: looked(None),
                "store renewing": lambda: looked(TTL_S),
                "rpc": lambda: called(False),
                "rpc renewing": lambda: called(True),
                "client": lambda: client.match(spec, ids).pages,
            }
            for name, side in sides.items():
                if side() != pages:
                    raise SystemExit(f"{name} did not find every page")
            return against(interleaved(sides, rounds), "exists")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pages", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate(*TESTS)
    described = machine()
    rows = measure(options.pages, options.rounds)
    print(table(rows))
    medians = {row["side"]: row["median"] for row in rows}
    result = {
        "match_over_exists": medians["client"],
        "renewing_match_over_exists": medians["rpc renewing"],
        "pages": options.pages,
        "rounds": options.rounds,
        "rows": rows,
    }
    finish("fleet_match", result, described)


if __name__ == "__main__":
    main()
