"""Two inference nodes share a prompt cache: `make demo`.

Starts the service, then two node processes with SmolLM2-135M. Node A prefills a shared context,
answers a question and offloads its cache. Node B, which has never seen the context, reloads it and
answers other questions, then takes A's conversation on for a second turn.

    python -m examples.two_nodes [--codecs lossless paper]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from examples.two_nodes.screen import Steps, show
from examples.two_nodes.service import Service
from lexico_codec.codecs import CODECS
from lexico_codec.presets import PRESETS


def run_node(role: str, service: Service, codecs: list[str], exchange: Path, steps: Steps) -> None:
    """Runs a node as a child process and shows its steps.

    Raises:
        SystemExit: it failed; what it wrote, and the service's log, are in the message.
    """
    command = [sys.executable, "-m", "examples.two_nodes.roles", role, "--exchange", str(exchange)]
    command += ["--offload", service.offload, "--reload", service.reload, "--codecs", *codecs]
    # What other libraries draw or warn of is kept for the case that the node fails.
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    log = exchange / f"{role}.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
        ) as node,
    ):
        for line in node.stdout or ():
            steps.begin(f"node {role.upper()} {json.loads(line)['step']}")
    if node.returncode:
        steps.failed()
        raise SystemExit(
            f"node {role.upper()} failed:\n{log.read_text()}\n"
            f"the service's log:\n{service.log.read_text()}"
        )


def main() -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.two_nodes", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--codecs",
        nargs="+",
        default=["lossless", "balanced"],
        choices=sorted({*PRESETS, *CODECS}),
        metavar="NAME",
        help="presets or codecs to show",
    )
    options = parser.parse_args()
    started = time.perf_counter()
    steps = Steps()
    with tempfile.TemporaryDirectory() as scratch:
        exchange = Path(scratch)
        steps.begin("the service starts: embedded store, Ray, two servers on loopback")
        with Service() as service:
            run_node("a", service, options.codecs, exchange, steps)
            run_node("b", service, options.codecs, exchange, steps)
            steps.begin("the service stops")
        steps.end()
        reports = [json.loads((exchange / f"{role}.json").read_text()) for role in "ab"]
    show(*reports)
    sys.stdout.write(f"\nDone in {time.perf_counter() - started:.0f} s.\n")


if __name__ == "__main__":
    main()
