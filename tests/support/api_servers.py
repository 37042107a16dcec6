"""Real API servers for tests that ask for them: `make k8s-server-check`."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from k8s.checks import definitions
from k8s.checks.rendering import Object, Rendering
from k8s.server import cluster, programs
from k8s.server.__main__ import dry_run
from k8s.server.dry_run import DryRun
from tests.support.broken_manifests import Broken, named, whole

WANTED: Final = os.environ.get("LEXICO_TEST_K8S_SERVERS") == "1"
"""Whether tests are wanted that need servers which take long to build."""


class Servers:
    """Servers that run, and what asks them."""

    def __init__(self, found: programs.Programs, running: cluster.Cluster) -> None:
        self.found = found
        self.running = running

    def asking(self) -> DryRun:
        """With findings of its own."""
        return dry_run(self.found, self.running, definitions.read())

    def said(self, rendering: Rendering) -> list[str]:
        """What they refuse."""
        asking = self.asking()
        asking.check(rendering)
        assert not asking.findings.unchecked
        return list(asking.findings.refused)


@contextmanager
def servers() -> Iterator[Servers]:
    """While the block runs; all of them."""
    found = programs.programs(programs.folder())
    assert not found.lacking
    with cluster.running(found, definitions.read()) as running:
        yield Servers(found, running)


def alone(rendering: str, of: str, broken: Broken, *more: Object) -> Rendering:
    """One object of a rendering, broken, with what it needs to be asked about: its namespace and
    accounts.

    Args:
        more: objects that come with it.
    """
    there = whole(rendering)
    item = copy.deepcopy(named(there, of))
    broken(item)
    return Rendering(rendering, (*there.of_kind("Namespace", "ServiceAccount"), item, *more))
