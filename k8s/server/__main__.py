"""Asks real API servers about every object that is rendered.

python -m k8s.server                       by the definitions in k8s/checks/crds
python -m k8s.server --definitions FOLDER  by whole ones, as their projects publish them
python -m k8s.server --build               has the servers built, and starts none
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml

from k8s.checks import definitions
from k8s.checks.rendering import Object, everything
from k8s.server import cluster, programs, report
from k8s.server.cluster import Cluster
from k8s.server.dry_run import DryRun, minor_version
from k8s.server.programs import Programs

REFUSED: Final = 1
NOT_CHECKED: Final = 3
"""Exit code where nothing was refused, and something could not be asked."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where servers take everything; 1 where one refuses something; 3 where something
    was not asked about, as a server is not to be had or does not know a kind.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--definitions", type=Path, help="folder of CustomResourceDefinitions")
    parser.add_argument("--out", type=Path, help="file for the outcome, as JSON")
    parser.add_argument("--build", action="store_true", help="build the servers, and no more")
    parser.add_argument("--anew", action="store_true", help="build those that are there, too")
    options = parser.parse_args(arguments)
    found = programs.programs(programs.folder(), options.anew)
    for name, why in found.lacking.items():
        sys.stderr.write(f"k8s-server-check: no {name}: {why}\n")
    if options.build or programs.ETCD in found.lacking:
        return NOT_CHECKED if found.lacking else 0
    known = read(options.definitions) if options.definitions else definitions.read()
    try:
        return _checked(found, known, options.out)
    except cluster.Failed as error:
        sys.stderr.write(f"k8s-server-check: {error}\n")
        return NOT_CHECKED


def read(folder: Path) -> dict[str, Object]:
    """Definitions of a folder's YAML files, by their names: of the kinds that are used here."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        for each in yaml.load_all(path.read_text(), Loader=loader):
            if each and each.get("kind") == "CustomResourceDefinition":
                about = each["metadata"].setdefault("annotations", {})
                about[definitions.SOURCE] = f"whole {definitions.source(path)}"
                found[each["metadata"]["name"]] = each
    wanted = definitions.read()
    if missing := sorted(set(wanted) - set(found)):
        raise SystemExit(f"{folder} has no definition of {', '.join(missing)}")
    return {name: each for name, each in found.items() if name in wanted}


def dry_run(found: Programs, servers: Cluster, known: dict[str, Object]) -> DryRun:
    """What asks these servers."""
    built_in = None
    if servers.built_in is not None:
        built_in = servers.built_in, minor_version(found.found[programs.BUILT_IN].version)
    kinds = {
        (f"{each['spec']['group']}/{version['name']}", each["spec"]["names"]["kind"])
        for each in known.values()
        for version in each["spec"]["versions"]
    }
    return DryRun(built_in, servers.custom, kinds, ", ".join(found.lacking.values()))


def _checked(found: Programs, known: dict[str, Object], out: Path | None) -> int:
    renderings = everything()
    objects = sum(len(each.objects) for each in renderings)
    with cluster.running(found, known) as servers:
        asking = dry_run(found, servers, known)
        for rendering in renderings:
            asking.check(rendering)
    findings = asking.findings
    sys.stdout.write("\n".join(report.lines(findings, len(renderings), objects)) + "\n")
    if out is not None:
        sources = {
            name: each["metadata"]["annotations"][definitions.SOURCE]
            for name, each in known.items()
        }
        told = report.document(findings, found, sources, len(renderings), objects)
        out.write_text(json.dumps(told, indent=1) + "\n")
    if findings.refused:
        return REFUSED
    return NOT_CHECKED if findings.unchecked else 0


if __name__ == "__main__":
    sys.exit(main())
