"""The whole service for minutes on end, under eight nodes: `make chaos`, `make soak`.

    python -m bench.endurance chaos --minutes 10 --seed 1
    python -m bench.endurance soak --minutes 30

Exit code 0 where no page was wrong, no call hung, no lease and no process was left; for soak also
where nothing grew.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil
import redis

from bench.endurance.faults import FAULTS, HEAVY
from bench.endurance.stack import Nodes, Stack, scratch
from bench.endurance.watch import Watch
from lexico_lab.record import finish, machine, table

NODES: Final = 8
LEASE_S: Final = 20.0
SLACK_S: Final = 30.0
"""A call that takes longer than its deadline by this much hung: a busy machine is late by less."""
GROWTH: Final = 0.05
SETTLED_MINUTES: Final = 5.0


def main() -> int:
    """Runs one of the two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=("chaos", "soak"))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=1, help="of the faults and of the prompts")
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--maxmemory", default="24mb", help="of Redis: pages are evicted")
    parser.add_argument("--keep", action="store_true", help="do not overwrite the committed result")
    options = parser.parse_args()
    minutes = options.minutes or (10.0 if options.kind == "chaos" else 30.0)
    described, dice = machine(), random.Random(options.seed)
    with scratch() as folder:
        result = _run(folder, options, minutes, dice)
    verdict = _verdict(result, options.kind)
    result["failures"] = verdict
    sys.stdout.write(f"{options.kind}: {verdict or 'nothing wrong'}\n")
    if options.keep:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        finish(options.kind, result, described)
    return 1 if verdict else 0


def _run(
    folder: Path, options: argparse.Namespace, minutes: float, dice: random.Random
) -> dict[str, Any]:
    stack = Stack(folder, maxmemory=options.maxmemory, lease_s=LEASE_S)
    stack.wait_until_up()
    nodes, watch, done = Nodes(stack, options.nodes, options.seed), Watch(), Counter[str]()
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        if options.kind == "chaos":
            name = _choose(dice)
            FAULTS[name](stack, nodes, dice)
            done[name] += 1
            time.sleep(dice.uniform(1.0, 5.0))
        else:
            time.sleep(1.0)
        stack.revive()
        if options.kind == "chaos":
            stack.wait_until_up()
        nodes.revive()
        watch.look({**stack.processes(), **_named(nodes)})
    stack.wait_until_up()
    hung = nodes.end()
    leases = _leases_left(stack)
    complaints = nodes.complaints()
    left = stack.close()
    calls = list(nodes.record())
    grown = [s for g in watch.processes.values() if (s := g.summary(SETTLED_MINUTES))]
    if grown:
        sys.stdout.write(table([{**row, "process": row["process"][:60]} for row in grown]) + "\n")
    if complaints:
        sys.stderr.write(complaints)
    return {
        "minutes": minutes,
        "seed": options.seed,
        "nodes": options.nodes,
        "faults": dict(done),
        "restarts": stack.restarts,
        **_summary(calls),
        "internal_errors": nodes.said("internal"),
        "nodes_hung": hung,
        "tracebacks": complaints.count("Traceback"),
        "leases_left": leases,
        "left_behind": left,
        "processes": grown,
    }


def _choose(dice: random.Random) -> str:
    names = sorted(FAULTS)
    return dice.choices(names, [1 if name in HEAVY else 4 for name in names])[0]


def _named(nodes: Nodes) -> dict[str, psutil.Process]:
    found = {}
    for node in nodes.living:
        with suppress(psutil.Error):
            found[f"node {node.pid}"] = psutil.Process(node.pid)
    return found


def _leases_left(stack: Stack) -> int:
    """Leases that nobody gave back, once those of killed encoders have run out."""
    deadline = time.monotonic() + 3 * LEASE_S
    while True:
        with suppress(redis.RedisError):
            left = sum(1 for _ in stack.direct().scan_iter("lx1:l:*", count=1000))
            if not left or time.monotonic() > deadline:
                return left
        time.sleep(0.5)


def _summary(calls: Iterable[dict[str, Any]]) -> dict[str, Any]:
    calls = list(calls)
    loads = [call for call in calls if call["what"] == "load"]
    offloads = [call for call in calls if call["what"] == "offload"]
    return {
        "loads": len(loads),
        "offloads": len(offloads),
        "pages_compared": sum(call.get("pages", 0) for call in loads),
        "wrong_pages": sum(len(call.get("wrong", ())) for call in loads),
        "late_writes": sum(call["what"] == "late" for call in calls),
        "calls_hung": sum(call["seconds"] > call["deadline"] + SLACK_S for call in calls),
        "longest_over_deadline_s": max(
            (call["seconds"] - call["deadline"] for call in loads + offloads), default=0.0
        ),
        "load_reasons": dict(Counter(str(call.get("reason")) for call in loads)),
        "offload_reasons": dict(Counter(str(call.get("reason")) for call in offloads)),
    }


def _verdict(result: dict[str, Any], kind: str) -> list[str]:
    names = ("wrong_pages", "late_writes", "calls_hung", "leases_left", "tracebacks")
    failures = [f"{name}: {result[name]}" for name in names if result[name]]
    failures += [f"left behind: {name}" for name in result["left_behind"]]
    failures += [f"hung: {name}" for name in result["nodes_hung"]]
    if not result["pages_compared"]:
        failures.append("no page was compared")
    if kind == "soak":
        failures += [
            f"{row['process'][:60]}: {name} grew by {row[f'{name} growth']:.1%}"
            for row in result["processes"]
            for name in ("rss", "descriptors", "threads")
            if row[f"{name} growth"] > GROWTH
        ]
        if result["restarts"]:
            failures.append(f"the service ended {result['restarts']} times")
    return failures


if __name__ == "__main__":
    sys.exit(main())
