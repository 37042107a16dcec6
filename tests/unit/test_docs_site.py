"""Links of documents as the site has them. `make docs-check` builds the whole."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

HOOKS = Path(__file__).parents[2] / "docs" / "_site" / "hooks.py"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs", reason="make .venv/docs installs it")
    spec = importlib.util.spec_from_file_location("docs_site_hooks", HOOKS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "written", "shown"),
    [
        ("settings.md", "[a](tenants.md#tls)", "[a](tenants.md#tls)"),
        ("index.md", "[`a`](docs/training.md)", "[`a`](training.md)"),
        ("adr/0008-ray-on-loopback.md", "[a](../../README.md)", "[a](../index.md)"),
        ("kubernetes.md", "[a](../docs/security.md)", "[a](security.md)"),
        ("figures.md", "![a](quality.svg)", "![a](quality.svg)"),
        ("settings.md", "[a](../examples/lexico.toml)", "a"),
        ("index.md", "[a](LICENSE) [b](bench/README.md)", "a [b](benchmarks.md)"),
        ("figures.md", "- is\n  <!-- figure:a.b -->3.3<!-- /figure --> times", "- is\n  3.3 times"),
        ("index.md", "[a](#b) [c](mailto:d)", "[a](#b) [c](mailto:d)"),
        ("index.md", "`[a](docs/b.md)`\n```\n[a](LICENSE)\n```", None),
    ],
)
def test_links(hooks: ModuleType, page: str, written: str, shown: str | None) -> None:
    there = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert hooks.on_page_markdown(written, there) == (written if shown is None else shown)


def test_links_to_sources(hooks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "SOURCES", "https://example.org/tree")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="settings.md"))
    link = "[a](../examples/lexico.toml)"
    shown = "[a](https://example.org/tree/examples/lexico.toml)"
    assert hooks.on_page_markdown(link, page) == shown
