"""What every benchmark shares: the gate, the machine's description, tables and the result file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_VERSIONS = (
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

    Raises:
        SystemExit: a test failed; its output is above.
    """
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", *tests]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        raise SystemExit("the gate is red: nothing was measured")
    sys.stderr.write(f"gate: {done.stdout.strip().splitlines()[-1]}\n")


def threads() -> int:
    """As many as OMP_NUM_THREADS says, or as there are cores."""
    return int(os.environ.get("OMP_NUM_THREADS", "0")) or len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """Hardware and versions that a figure belongs to."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version for name in _VERSIONS if (version := _version(name))},
        "load_before": os.getloadavg()[0],
        "date": datetime.now(UTC).date().isoformat(),
    }


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
    """Writes `results/NAME.json` and prints the result as the last line."""
    RESULTS.mkdir(exist_ok=True)
    document = {"benchmark": name, **result, "machine": described}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    sys.stdout.write(json.dumps(dict(result)) + "\n")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a kernel benchmark runs without the services
        return None


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
