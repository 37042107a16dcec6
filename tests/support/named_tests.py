"""Whether tests that a document or a table names are there."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


def missing(name: str) -> bool:
    """Whether there is no such test.

    Args:
        name: `tests/unit/test_a.py`, or `tests/unit/test_a.py::test_b`, also of a method.
    """
    path, _, test = name.partition("::")
    file = ROOT / path
    return not file.is_file() or (bool(test) and test not in _tests(file))


@cache
def _tests(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text())
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, functions) and node.name.startswith("test")
    )
