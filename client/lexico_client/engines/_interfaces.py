"""Interfaces of engines, as recorded and as they are: one that moved is no silent miss."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final


def interface_of(base: type) -> dict[str, list[str]]:
    """Public methods of a class, and the names of their parameters."""
    return {
        name: [
            _STARS.get(each.kind, "") + each.name
            for each in inspect.signature(method).parameters.values()
        ]
        for name, method in inspect.getmembers(base, callable)
        if not name.startswith("_") or name in ("__init__", "_get_connector_metadata")
    }


def differences(recorded: Mapping[str, list[str]], found: Mapping[str, list[str]]) -> list[str]:
    """What is otherwise than it was recorded, one line for each method."""
    lines = []
    for name, parameters in recorded.items():
        if name not in found:
            lines.append(f"{name} is gone")
        elif found[name] != parameters:
            lines.append(f"{name}({', '.join(found[name])}) was ({', '.join(parameters)})")
    return lines


_STARS: Final[Mapping[Any, str]] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}
