"""`bench/results/engines.json`, which several programs write: each its engine's part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lexico_lab.record import RESULTS, finish, machine


def earlier(engine: str) -> dict[str, Any]:
    """The parts of an engine in the file that lies there."""
    parts: dict[str, Any] = _document().get(engine, {})
    return parts


def write(
    engine: str,
    parts: Mapping[str, Any],
    figures: Mapping[str, float],
    goals: Sequence[Mapping[str, Any]],
) -> None:
    """Writes what there is of an engine, and leaves what there is of others.

    Args:
        engine: its name.
        parts: name → what was measured.
        figures: what documents show of it.
        goals: a row for each of them that has one.
    """
    before = _document()
    others = [row for row in before.get("goals", ()) if row["figure"] not in figures]
    finish(
        "engines",
        {**before, **figures, "goals": [*others, *goals], engine: parts},
        machine(),
    )


def _document() -> dict[str, Any]:
    """Without what `finish` adds."""
    file = RESULTS / "engines.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return {name: value for name, value in found.items() if name not in ("benchmark", "machine")}
