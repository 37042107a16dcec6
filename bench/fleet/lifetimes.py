"""What a full store is worth: pages that a prefix match can reach, and hits of a real trace.

    python -m bench.fleet.lifetimes [--trace FILE] [--requests 12031] [--server-requests 2000]

`reachable_share`: in a store of 64 MB, 120 conversations of 24 pages are offloaded, in one go each,
and in turns that add pages; of the pages that are resident then, those that no missing page stands
before. Beside it the same with what Redis does by itself: volatile-lru, 5 samples, no renewal.

`replay_hit_rate`: the trace against `MemoryStore`, whose order is that of volatile-ttl without its
sampling, and its beginning against the embedded server; with ample memory over the ceiling, and
with memory for half of the pages over the better of LRU and LFU in a simulation.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import redis

from bench.fleet.replay import (
    NAMESPACE,
    SCOPE,
    TTL_S,
    Request,
    StoreCache,
    hit_rate,
    key_of,
    leading,
    lfu,
    lru,
    read_trace,
)
from lexico_lab.record import finish, gate, machine, table
from lexico_store import EmbeddedServer, MemoryStore, PageStore, StoreSettings, keys, open_store

TESTS: Final = ("tests/unit/test_lifetimes.py", "tests/contract/test_store_embedded.py")
STORE_BYTES: Final = 64 << 20
CONVERSATIONS: Final = 120
PAGES: Final = 24
PAGE_BYTES: Final = 32 << 10
SMALL_BYTES: Final = 2048
PATIENT: Final = StoreSettings(timeout_s=60.0, connect_timeout_s=60.0, start_timeout_s=60.0)


@contextmanager
def embedded(maxmemory: int, *, former: bool = False) -> Iterator[tuple[PageStore, Any]]:
    """A store in a server of its own, and a plain connection to that."""
    with EmbeddedServer(maxmemory=maxmemory, server="wheel", start_timeout_s=60.0) as server:
        raw = redis.Redis(unix_socket_path=str(server.socket_path))
        if former:
            raw.config_set("maxmemory-policy", "volatile-lru")
            raw.config_set("maxmemory-samples", 5)
        with open_store(server.url, PATIENT) as store:
            yield store, raw


def turns(at_once: bool, seed: int = 0) -> list[tuple[int, int]]:
    """Which conversation offloads how many pages, in order."""
    if at_once:
        return [(each, PAGES) for each in range(CONVERSATIONS)]
    rng, plan = random.Random(seed), []
    begun = dict.fromkeys(range(CONVERSATIONS), 0)
    while begun:
        each = rng.choice(sorted(begun)[:20])
        begun[each] += 4
        plan.append((each, begun[each]))
        if begun[each] == PAGES:
            del begun[each]
    return plan


def reachable(at_once: bool, *, former: bool) -> dict[str, Any]:
    """Offloads every conversation to a full store; what can be reached afterwards."""
    page, resident, reached = random.Random(1).randbytes(PAGE_BYTES), 0, 0
    with embedded(STORE_BYTES, former=former) as (store, _):
        for each, pages in turns(at_once):
            chain = [key_of(1000 * each + at) for at in range(pages)]
            renew_s = None if former else TTL_S
            found = store.match(SCOPE, NAMESPACE, chain, renew_s=renew_s)
            for at, (key, present) in enumerate(zip(chain, found.present, strict=True)):
                if not present:
                    store.commit(SCOPE, key, [page], TTL_S, page=0 if former else at)
        for each in range(CONVERSATIONS):
            there = store.present(SCOPE, [key_of(1000 * each + at) for at in range(PAGES)])
            resident += sum(there)
            reached += leading(there)
    return {
        "policy": "volatile-lru, 5 samples, no renewal" if former else "ours",
        "offloads": "one each" if at_once else "in turns",
        "resident": resident,
        "reachable_share": reached / resident,
    }


def replayed_in_memory(trace: list[Request], room: int) -> float:
    """Hit rate of a memory store with room for so many pages, on the trace's own clock."""
    now = [0.0]

    def tick(at_s: float) -> None:
        now[0] = at_s

    with MemoryStore(room, clock=lambda: now[0]) as store:
        return hit_rate(StoreCache(store, 1), trace, tick)


def replayed_on_server(trace: list[Request], pages: int, share: float) -> float:
    """Hit rate of the embedded server with memory for a share of the pages."""
    with embedded(1 << 30) as (store, raw):
        empty = raw.info("memory")["used_memory"]
        for page in range(1000):
            store.commit(SCOPE, key_of(page), [bytes(SMALL_BYTES)], TTL_S)
        each = (raw.info("memory")["used_memory"] - empty) / 1000
        raw.delete(*[keys.page(SCOPE, key_of(page)) for page in range(1000)])
        raw.config_set("maxmemory", int(empty + each * pages * share))
        return hit_rate(StoreCache(store, SMALL_BYTES), trace)


def replayed(trace: list[Request], server_requests: int) -> list[dict[str, Any]]:
    """Every store and simulation on its trace."""
    rows = []
    for name, part in (("memory", trace), ("server", trace[:server_requests])):
        pages = len({page for request in part for page in request.pages})
        half = pages // 2
        best = max(hit_rate(lru(half), part), hit_rate(lfu(half), part))
        ceiling = hit_rate(lru(pages), part)
        if name == "memory":
            ample, scarce = replayed_in_memory(part, pages), replayed_in_memory(part, half)
        else:
            ample = replayed_on_server(part, pages, 1.2)
            scarce = replayed_on_server(part, pages, 0.5)
        rows.append(
            {
                "store": name,
                "requests": len(part),
                "pages": pages,
                "ceiling": ceiling,
                "ample": ample,
                "best_of_lru_lfu": best,
                "half": scarce,
                "ample_over_ceiling": ample / ceiling,
                "half_over_best": scarce / best,
            }
        )
    return rows


def main() -> None:
    """Prints tables; writes bench/results/lifetimes.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", type=Path, help="JSON lines with timestamp and hash_ids")
    parser.add_argument("--requests", type=int, default=12_031)
    parser.add_argument("--server-requests", type=int, default=2_000)
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate(*TESTS)
    described = machine()
    reach = [
        reachable(at_once, former=former) for at_once in (True, False) for former in (True, False)
    ]
    print(table(reach))
    result: dict[str, Any] = {
        "reachable_share": min(r["reachable_share"] for r in reach if r["policy"] == "ours"),
        "reachable": reach,
    }
    if options.trace is not None:
        rows = replayed(read_trace(options.trace, options.requests), options.server_requests)
        print(table(rows))
        result["replay_hit_rate"] = min(row["ample_over_ceiling"] for row in rows)
        result["replay_hit_rate_half"] = min(row["half_over_best"] for row in rows)
        result["replay"] = rows
    finish("lifetimes", result, described)


if __name__ == "__main__":
    main()
