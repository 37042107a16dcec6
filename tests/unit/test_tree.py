"""The form of the tree: how long a file may be, and how modules are imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = (
    *("proto/lexico_proto", "lexico_codec", "lexico_store", "lexico_worker", "lexico_lab"),
    *("services/lexico_services", "client/lexico_client"),
)
REST: Final = ("bench", "examples", "k8s", "requirements", "tests", "docs/_site")
MOST_LINES: Final = 400
BY_STRING: Final = {"import_module", "__import__"}
OF_A_MODEL: Final = {"lexico_codec/hf_geometry.py"}
"""Imports the module of whatever model it is given, which transformers tells by its name."""


def sources(*folders: str) -> list[Path]:
    """Python files that were written, not generated."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert found
    return [path for path in sorted(found) if "_pb2" not in path.name]


def imports_by_string(tree: ast.AST) -> Iterator[int]:
    """Lines that name what imports by a string: import-linter sees no such import."""
    for node in ast.walk(tree):
        names = {node.attr} if isinstance(node, ast.Attribute) else set()
        names |= {node.id} if isinstance(node, ast.Name) else set()
        names |= {each.name for each in node.names} if isinstance(node, ast.ImportFrom) else set()
        if names & BY_STRING:
            yield getattr(node, "lineno", 0)


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in sources(*PACKAGES, *REST)}
    assert {str(path): count for path, count in lines.items() if count > MOST_LINES} == {}


def test_nothing_imports_by_a_string() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in sources(*PACKAGES)
        if list(imports_by_string(ast.parse(path.read_text())))
    }
    assert found == OF_A_MODEL


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("importlib.import_module(name)", [1]),
        ("from importlib import import_module", [1]),
        ("x = 1\n__import__('ray')", [2]),
        ("from lexico_codec.codecs import raw", []),
        ("importlib.util.find_spec('ray')", []),
    ],
)
def test_what_counts_as_an_import_by_a_string(text: str, lines: list[int]) -> None:
    assert list(imports_by_string(ast.parse(text))) == lines
