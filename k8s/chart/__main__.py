"""Writes the chart, or with --check says what is not what it would write: exit code 1 then."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence

from k8s.chart.generate import FOLDER, differences, files


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where --check found a difference."""
    parser = argparse.ArgumentParser(description="The Helm chart of the manifests beside it.")
    parser.add_argument("--check", action="store_true", help="only say whether it is to be done")
    if parser.parse_args(arguments).check:
        different = differences()
        for name in different:
            sys.stderr.write(f"k8s/helm/{name} is not what the manifests give: make k8s-chart\n")
        return 1 if different else 0
    made = files()
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, text in made.items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
