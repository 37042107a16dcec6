"""What it costs to start each part: seconds of the processor, and modules that are imported.

    python -m bench.startup [--against FOLDER] [--rounds 5]

`--against` names another checkout, such as one of an earlier commit: both are started in turns, and
the ratios of their medians are given beside the figures. Modules need no quiet machine: they are
counted, and `tests/unit/test_imports.py` holds them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from lexico_lab.record import ROOT, finish, machine, table

PARTS: Final[dict[str, tuple[str, ...]]] = {
    "client": ("lexico_client",),
    "client of Hugging Face": ("lexico_client.hf",),
    "reload server": ("lexico_services.reload.run", "lexico_services.serve"),
    "service": ("lexico_services.offload.deployment", "lexico_services.ingress_deployment"),
    "encoder": ("lexico_worker.deployment lexico_worker.page_encoder",),
    "page encoder": ("lexico_worker.page_encoder",),
    "lexico --help": ("lexico_services.cli",),
    "torch alone": ("torch",),
}
"""part → the modules that its process imports, with blanks between them; the first that there are,
for earlier checkouts.
"""

_PROGRAM: Final = """
import importlib, importlib.util, json, sys, time
before, began = set(sys.modules), time.process_time()
for name in json.loads(sys.argv[1]):
    try:
        for each in name.split():
            importlib.import_module(each)
    except ModuleNotFoundError:
        continue
    if name == "lexico_services.cli":
        try:
            sys.modules[name].main(["--help"])
        except SystemExit:
            pass
    break
else:
    sys.exit(f"none of {sys.argv[1]} is in this checkout")
seconds = time.process_time() - began
print()
print(json.dumps({"seconds": seconds, "modules": len(set(sys.modules) - before)}))
"""


def start(modules: tuple[str, ...], checkout: Path) -> dict[str, Any]:
    """Seconds of the processor and modules of one process that imports them."""
    folders = (checkout, checkout / "proto", checkout / "services", checkout / "client")
    path = os.pathsep.join(str(folder) for folder in folders)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(modules)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    described = machine()
    rows = []
    for part, modules in PARTS.items():
        checkouts = [ROOT, *([options.against.resolve()] if options.against else [])]
        rounds: list[list[dict[str, Any]]] = [
            [start(modules, checkout) for checkout in checkouts] for _ in range(options.rounds)
        ]
        row: dict[str, Any] = {
            "part": part,
            "seconds": statistics.median(one[0]["seconds"] for one in rounds),
            "modules": rounds[0][0]["modules"],
        }
        if options.against:
            row["modules before"] = rounds[0][1]["modules"]
            row["seconds / before"] = statistics.median(
                one[0]["seconds"] / one[1]["seconds"] for one in rounds
            )
        rows.append(row)
    print(table(rows))
    finish("startup", {"rounds": options.rounds, "rows": rows}, described)


if __name__ == "__main__":
    main()
