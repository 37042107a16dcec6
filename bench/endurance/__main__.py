"""The whole service for minutes on end, under eight nodes: `make chaos`, `make soak`.

    python -m bench.endurance chaos --minutes 10 --seed 1
    python -m bench.endurance soak --minutes 30

Exit code 0 where no page was wrong, no call hung, no node ended by itself, no lease and no process
was left, and a third of the calls was given up half-way; for chaos where every kind of fault came
at least twice and pages are stored and loaded again after the last, for soak where nothing grew and
every process lived through it. The shares of the time that the servers were up are no verdict: a
busy machine starts them slowly.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import psutil
import redis

from bench.endurance.faults import FAULTS
from bench.endurance.plan import order_of, paced
from bench.endurance.report import SETTLED_MINUTES, failures, summary, working_calls
from bench.endurance.stack import START_S, Nodes, Stack, scratch
from bench.endurance.uptime import Uptime
from bench.endurance.watch import Watch
from lexico_lab.record import finish, machine, table
from tests.support.leases import held_leases

NODES: Final = 8
LEASE_S: Final = 20.0


def main() -> int:
    """Runs one of the two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=("chaos", "soak"))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=1, help="of the faults and of the prompts")
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument(
        "--maxmemory",
        default="64mb",
        help="of Redis: 27 MB are the shipped sets, pages are evicted",
    )
    parser.add_argument("--keep", action="store_true", help="do not overwrite the committed result")
    options = parser.parse_args()
    minutes = options.minutes or (10.0 if options.kind == "chaos" else 30.0)
    described, dice = machine(), random.Random(options.seed)
    with scratch() as folder, ExitStack() as ends:
        result = _run(folder, options, minutes, dice, ends)
    verdict = failures(result, options.kind)
    result["failures"] = verdict
    sys.stdout.write(f"{options.kind}: {verdict or 'nothing wrong'}\n")
    if options.keep:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        finish(options.kind, result, described)
    return 1 if verdict else 0


def _run(
    folder: Path,
    options: argparse.Namespace,
    minutes: float,
    dice: random.Random,
    ends: ExitStack,  # of what lives still where this fails
) -> dict[str, Any]:
    stack = Stack(folder, maxmemory=options.maxmemory, lease_s=LEASE_S)
    ends.callback(stack.kill)
    stack.wait_until_up()
    nodes, watch = Nodes(stack, options.nodes, options.seed), Watch()
    ends.callback(nodes.kill)
    uptime = Uptime((stack.reload, stack.offload))
    end = time.monotonic() + 60 * minutes

    def pause(seconds: float) -> None:
        """The supervisor's part meanwhile; longer where the service starts again."""
        until = min(end, time.monotonic() + seconds)
        while True:
            stack.revive()
            nodes.revive()
            watch.look({**stack.processes(), **_named(nodes)})
            if time.monotonic() >= until:
                break
            time.sleep(0.2)
        stack.wait_until_up()

    order = order_of(dice, minutes) if options.kind == "chaos" else []
    done = Counter(dict.fromkeys(sorted(set(order)), 0))
    for name, before in paced(order, dice, end):
        pause(before)
        FAULTS[name](stack, nodes, dice)
        done[name] += 1
    pause(60 * minutes)
    shares = uptime.shares()
    uptime.end()
    stack.wait_until_up()
    recovered = _recovered(stack, nodes)
    hung = nodes.end()
    leases = _leases_left(stack)
    complaints = nodes.complaints()
    left = stack.close()
    grown = [s for g in watch.processes.values() if (s := g.summary(SETTLED_MINUTES))]
    if grown:
        sys.stdout.write(table([{**row, "process": row["process"][:60]} for row in grown]) + "\n")
    if complaints:
        sys.stderr.write(complaints)
    return {
        "minutes": minutes,
        "seed": options.seed,
        "nodes": options.nodes,
        "faults_planned": dict(Counter(order)),
        "faults": dict(done),
        "restarts": stack.restarts,
        "recovered": recovered,
        **shares,
        **summary(nodes.record()),
        "internal_errors": nodes.said("internal"),
        "nodes_hung": hung,
        "nodes_ended": nodes.ended,
        "tracebacks": complaints.count("Traceback"),
        "leases_left": leases,
        "left_behind": left,
        "processes": grown,
        "passing": watch.passing(SETTLED_MINUTES),
    }


def _recovered(stack: Stack, nodes: Nodes) -> bool:
    """Whether pages are stored and loaded again after the last fault; waits until they are."""
    before, deadline = working_calls(nodes.record()), time.monotonic() + START_S
    while time.monotonic() < deadline:
        stack.revive()
        nodes.revive()
        if all(now > then for now, then in zip(working_calls(nodes.record()), before, strict=True)):
            return True
        time.sleep(1.0)
    return False


def _named(nodes: Nodes) -> dict[str, psutil.Process]:
    found = {}
    for node in nodes.living:
        with suppress(psutil.Error):
            found[f"node {node.pid}"] = psutil.Process(node.pid)
    return found


def _leases_left(stack: Stack) -> int:
    """Leases that nobody gave back, once those of killed encoders have run out.

    Raises:
        redis.RedisError: Redis does not say.
    """
    deadline = time.monotonic() + 3 * LEASE_S
    while True:
        late = time.monotonic() > deadline
        try:
            left = held_leases(stack.direct())
        except redis.RedisError:
            if late:
                raise
        else:
            if not left or late:
                return left
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
