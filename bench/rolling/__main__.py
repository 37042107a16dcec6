"""A rolling change of reload servers, ingresses and encoders under load.

    python -m bench.rolling

Two reload servers and two offload servers, each with two encoders, behind two names. Each is
replaced in turn: a new one starts and enters the name, the old one leaves it and gets SIGTERM. Then
an encoder of each offload server gets SIGTERM. Exit code 0 where no call failed after its one
retry, no acknowledged page was missing or wrong, and every server ended with 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from bench.endurance.stack import scratch
from bench.rolling.report import summary, verdict
from bench.rolling.stack import KINDS, Tier, restart_encoder
from lexico_lab.record import finish, gate, machine, table
from tests.support.names import name_server
from tests.support.servers import redis_server

SERVERS: Final = 2
SETTLE_S: Final = 5.0
"""Between two replacements."""


class Nodes:
    """Node processes, and what they told."""

    def __init__(self, count: int, reload: str, offload: str, folder: Path) -> None:
        self._files = [folder / f"node-{seed}.jsonl" for seed in range(1, count + 1)]
        self._processes = []
        for seed, file in enumerate(self._files, 1):
            line = [sys.executable, "-m", "bench.rolling.node", reload, offload]
            line += [str(folder / f"sets-{seed}"), str(seed)]
            with file.open("wb") as out:
                self._processes.append(subprocess.Popen(line, stdout=out))

    def wait_until_all_load(self) -> None:
        """Until each has loaded something.

        Raises:
            SystemExit: one has ended.
        """
        while not all('"load"' in file.read_text() for file in self._files):
            if any(process.poll() is not None for process in self._processes):
                raise SystemExit("a node ended by itself")
            time.sleep(0.1)

    def end(self) -> list[int]:
        """Exit codes, each after its call under way."""
        for process in self._processes:
            process.terminate()
        return [process.wait(300) for process in self._processes]

    def record(self) -> list[dict[str, Any]]:
        """Every call, by time."""
        lines = [line for file in self._files for line in file.read_text().splitlines()]
        return sorted((json.loads(line) for line in lines), key=lambda call: call["at"])


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--steady", type=float, default=20.0, help="seconds before and after")
    parser.add_argument("--keep", action="store_true", help="do not overwrite the committed result")
    parser.add_argument("--no-gate", action="store_true", help="for work on this file")
    options = parser.parse_args()
    if not options.no_gate:
        gate("tests/integration/test_resolution.py", "tests/integration/test_drain_file.py")
    described = machine()
    with scratch() as folder:
        result = _run(folder, options.nodes, options.steady)
    result["failures"] = verdict(result)
    sys.stdout.write(f"rolling: {result['failures'] or 'nothing lost'}\n")
    rows = [
        {"phase": phase, "what": what, **counts}
        for phase, told in result["phases"].items()
        for what, counts in told.items()
        if counts["calls"]
    ]
    sys.stdout.write(table(rows) + "\n")
    if options.keep:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        finish("rolling", result, described)
    return 1 if result["failures"] else 0


def _run(folder: Path, nodes: int, steady_s: float) -> dict[str, Any]:
    (folder / "redis").mkdir()
    with ExitStack() as stack:
        store = stack.enter_context(redis_server(folder / "redis")).url
        names = stack.enter_context(name_server())
        reload, offload = tiers = [Tier(kind, names, store, folder) for kind in KINDS]
        for tier in tiers:
            stack.callback(tier.stop)
            tier.start(SERVERS)
        load = Nodes(nodes, reload.target, offload.target, folder)
        stack.callback(load.end)
        load.wait_until_all_load()
        began = time.time()
        time.sleep(steady_s)
        first, replaced = time.time(), []
        for tier in tiers:
            for _ in range(SERVERS):
                replaced.append(tier.replace_first())
                time.sleep(SETTLE_S)
        for server in offload.servers:
            replaced.append(restart_encoder(server))
            time.sleep(SETTLE_S)
        last = time.time()
        time.sleep(steady_s)
        codes = load.end()
        for tier in tiers:
            codes += tier.end()
        codes += [each["exit_code"] for each in replaced if "exit_code" in each]
        calls = [call for call in load.record() if call["at"] >= began]
        return {
            "nodes": nodes,
            "reload_servers": SERVERS,
            "offload_servers": SERVERS,
            "replaced": [{**each, "at": round(each["at"] - began, 1)} for each in replaced],
            **summary(calls, began, first, last),
            "exit_codes": codes,
            "tracebacks": sum(tier.complaints() for tier in tiers),
        }


if __name__ == "__main__":
    sys.exit(main())
