"""What every measurement in the repository shares: the gate, tables and the result file.

It works in a checkout alone: the tests and `bench/results/` are no part of an installed package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lexico_lab.machine import describe

ROOT: Final = Path(__file__).parents[1]
"""Of the checkout."""
RESULTS: Final = ROOT / "bench" / "results"
_PACKAGES: Final = (
    "torch",
    "triton",
    "grpcio",
    "protobuf",
    "ray",
    "redis",
    "hiredis",
    "transformers",
    "numpy",
)


def gate(*tests: str) -> None:
    """Runs the tests of what is measured: no number without them green.

    Args:
        tests: paths or patterns below the root.

    Raises:
        SystemExit: a test failed, its output is above; no test is there by such a name; or this
            is no checkout.
    """
    if not (ROOT / "tests").is_dir():
        raise SystemExit("measurements run in a checkout of the project: its tests are their gate")
    files: list[str] = []
    for pattern in tests:
        found = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))
        if not found:
            raise SystemExit(f"the gate has no tests: {pattern} names no file")
        files += found
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        raise SystemExit("the gate is red: nothing was measured")
    sys.stderr.write(f"gate: {done.stdout.strip().splitlines()[-1]}\n")


def machine() -> dict[str, Any]:
    """Hardware and versions that a figure belongs to, and how busy the machine is."""
    return {**describe(_PACKAGES), "load_before": os.getloadavg()[0]}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as aligned text."""
    names = list(rows[0])
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def finish(name: str, result: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    """Writes `bench/results/NAME.json` and prints the result as the last line.

    Raises:
        SystemExit: this is no checkout.
    """
    if not RESULTS.parent.is_dir():
        raise SystemExit(f"{RESULTS}: measurements run in a checkout of the project")
    RESULTS.mkdir(exist_ok=True)
    document = {"benchmark": name, **result, "machine": described}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    sys.stdout.write(json.dumps(dict(result)) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
