"""What a run found, as lines and as a document."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from k8s.server.dry_run import AS_POD, Findings
from k8s.server.programs import Programs


def lines(findings: Findings, renderings: int, objects: int) -> list[str]:
    """Refusals first, each with the rendering that has it, then what was asked."""
    told = []
    for what, where in sorted(findings.refused.items()):
        more = f" (and {len(where) - 1} more)" if len(where) > 1 else ""
        told.append(f"{where[0]}{more}: {what}")
    for (kind, why), count in sorted(findings.unchecked.items()):
        told.append(f"NOT CHECKED: {count} of {kind}: {why}")
    for (kind, server, version), count in sorted(findings.checked.items()):
        older = "" if kind.startswith(version) else f", as {version}"
        told.append(f"{count:5} {kind}: {server}{older}")
    told += [f"{count:5} with {what}" for what, count in sorted(findings.said.items())]
    told += [
        f"{count:5} not asked about: {what}" for what, count in sorted(findings.unasked.items())
    ]
    told += [f"{count:5} warnings: {what}" for what, count in sorted(findings.warnings.items())]
    asked, pods = _counts(findings)
    told.append(
        f"{renderings} renderings, {objects} objects, {asked} of them asked about, "
        f"{pods} pods within them, {findings.reviews} questions about rights, "
        f"{len(findings.refused)} refusals"
    )
    return told


def document(
    findings: Findings,
    found: Programs,
    definitions: Mapping[str, str],
    renderings: int,
    objects: int,
) -> dict[str, Any]:
    """The same for a file.

    Args:
        definitions: names of the custom resources' definitions, and where each is from.
    """
    programs = {
        name: {"package_version": each.version, "go": each.toolchain, "sha256": each.sha256}
        for name, each in found.found.items()
    }
    asked, pods = _counts(findings)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.machine(),
        "servers": programs,
        "not_to_be_had": found.lacking,
        "definitions": dict(definitions),
        "renderings": renderings,
        "objects": objects,
        "asked": asked,
        "pods": pods,
        "rights": findings.reviews,
        "refused": len(findings.refused),
        "checked": [
            {"kind": kind, "server": server, "asked_as": version, "objects": count}
            for (kind, server, version), count in sorted(findings.checked.items())
        ],
        "in_older_words": dict(sorted(findings.said.items())),
        "not_asked_about": dict(sorted(findings.unasked.items())),
        "not_checked": [
            {"kind": kind, "why": why, "objects": count}
            for (kind, why), count in sorted(findings.unchecked.items())
        ],
        "warnings": dict(sorted(findings.warnings.items())),
        "refusals": {what: list(where) for what, where in sorted(findings.refused.items())},
    }


def _counts(findings: Findings) -> tuple[int, int]:
    """Objects that servers were asked about, and pods within them."""
    pods = sum(count for (kind, *_), count in findings.checked.items() if kind.endswith(AS_POD))
    return findings.checked.total() - pods, pods
