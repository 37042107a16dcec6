"""docs/tutorial.md does what it says, command by command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.servers import free_port
from tests.support.tutorial import ROOT, TUTORIAL, blocks_of, is_as_said, ran


@pytest.mark.timeout(3600)
def test_every_command_prints_what_stands_below_it(tmp_path: Path) -> None:
    """All but the installation: `make test-tutorial` begins with a clone."""
    text = TUTORIAL.read_text()
    for port in ("7411", "7412"):
        text = text.replace(port, str(free_port()))
    blocks = [block for block in blocks_of(text) if not block.installs]
    (tmp_path / "lexico-offload").symlink_to(ROOT)
    python = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{python}{os.pathsep}{os.environ['PATH']}"}
    done = ran(blocks, tmp_path, environment)
    told = [
        (block.commands, output, block.printed)
        for block, output in zip(blocks, done.outputs, strict=False)
        if not is_as_said(output, block.printed)
    ]
    assert not told, done.errors
    assert (done.code, len(done.outputs)) == (0, len(blocks)), done.errors


@pytest.mark.parametrize(
    ("output", "printed", "fits"),
    [
        ("a\n", "a\n", True),
        ("a 12 b\nc", "a … b\nc\n", True),
        ("a 12 b\nd", "a … b\nc\n", False),
        ("", "…\n", True),
        ("anything", None, True),
        ("ab", "a\n", False),
    ],
)
def test_outputs_are_compared(output: str, printed: str | None, fits: bool) -> None:
    assert is_as_said(output, printed) is fits


def test_blocks_are_found() -> None:
    document = "<!-- install -->\n```sh\na\n```\n\ntext\n\n```sh\nb\n```\n\n```text\nc\n```\n"
    found = [(block.commands, block.printed, block.installs) for block in blocks_of(document)]
    assert found == [("a\n", None, True), ("b\n", "c\n", False)]


def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    done = ran(blocks_of("```sh\necho a\n```\n```sh\nfalse\n```\n"), tmp_path, dict(os.environ))
    assert (done.code, done.outputs) == (1, ["a\n", ""])
