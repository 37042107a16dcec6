"""Writes what is made of alerts and dashboards; see --help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import yaml

from k8s.monitoring.alerts.alert import RUNBOOKS
from k8s.monitoring.files import differences, files, prometheus_rule, rules


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where --check found a difference."""
    parser = argparse.ArgumentParser(description="Rules and dashboards, from k8s/monitoring.")
    parser.add_argument("--check", action="store_true", help="only say whether it is to be done")
    parser.add_argument(
        "--show",
        choices=["rules", "prometheusrule"],
        help="print these in place of writing files, with --runbooks",
    )
    parser.add_argument(
        "--runbooks", default=RUNBOOKS, metavar="URL", help="where your runbooks are read"
    )
    options = parser.parse_args(arguments)
    if options.show is not None:
        made = {"rules": rules, "prometheusrule": prometheus_rule}[options.show]
        text: str = yaml.safe_dump(made(options.runbooks), sort_keys=False, width=100)
        sys.stdout.write(text)
        return 0
    if options.check:
        different = differences()
        for name in different:
            sys.stderr.write(f"k8s/{name} is not what k8s/monitoring gives: make k8s-chart\n")
        return 1 if different else 0
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
