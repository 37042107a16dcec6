"""Every target under the fuzzer, and every RPC: `make fuzz`.

python -m tests.fuzz [--seconds 600] [--seed 1] [TARGET...]

Exit code 0 where nothing was found. An input that is a finding is kept in tests/fuzz/found/.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from lexico_lab.record import finish, machine
from tests.fuzz.rpcs import attack
from tests.fuzz.targets import TARGETS

FOUND: Final = Path(__file__).with_name("found")
LONGEST: Final = 65536
"""Bytes of an input."""
SLOWEST_S: Final = 60
"""An input that takes longer is a finding: generous, for a busy machine."""


def main() -> int:
    """Runs them one after another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", help="all by default")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rpcs", type=int, default=3000, help="calls with malformed messages")
    parser.add_argument("--keep", action="store_true", help="do not overwrite the committed result")
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    described = machine()
    rows = [_fuzzed(name, options.seconds / len(names), options.seed) for name in names]
    rpcs = asyncio.run(attack(options.rpcs, options.seed))
    findings = [row["target"] for row in rows if row["finding"]] + rpcs["findings"]
    result = {"seed": options.seed, "targets": rows, "rpcs": rpcs, "findings": findings}
    if not options.keep:
        finish("fuzz", result, described)
    sys.stdout.write(f"fuzz: {findings or 'nothing found'}\n")
    return 1 if findings else 0


def _fuzzed(name: str, seconds: float, seed: int) -> dict[str, Any]:
    FOUND.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        line = [sys.executable, "-m", "tests.fuzz.run", name, corpus]
        line += [f"-max_total_time={seconds:.0f}", f"-seed={seed}", f"-max_len={LONGEST}"]
        line += [f"-timeout={SLOWEST_S}", f"-artifact_prefix={FOUND}/{name}-", "-rss_limit_mb=0"]
        done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    said = done.stdout.decode(errors="replace")
    runs = re.findall(r"^Done (\d+) runs", said, re.MULTILINE)
    coverage = re.findall(r"cov: (\d+)", said)
    if done.returncode:
        sys.stderr.write(said[-4000:])
    row = {
        "target": name,
        "runs": int(runs[-1]) if runs else 0,
        "edges": int(coverage[-1]) if coverage else 0,
        "finding": done.returncode != 0,
    }
    sys.stdout.write(f"{row}\n")
    sys.stdout.flush()
    return row


if __name__ == "__main__":
    sys.exit(main())
