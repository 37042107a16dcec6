"""The commands of a document, and what it says that they print."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TUTORIAL: Final = ROOT / "docs" / "tutorial.md"
ANYTHING: Final = "…"

_BLOCK: Final = re.compile(
    r"^(?P<install><!-- install -->\n)?```sh\n(?P<commands>.*?)^```\n"
    r"(?:\n```text\n(?P<printed>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
# On a line of its own, also where what was printed before ends without one.
_MARK: Final = r"\n@@ %s\n"
# What a test must do where a person looks: end at the first error, and leave nothing running.
_PRELUDE: Final = """set -euo pipefail
trap 'test -z "${serve-}" || kill "$serve" 2>/dev/null || true; wait' EXIT
"""


@dataclass(frozen=True)
class Block:
    """Commands, run by one shell after those before them."""

    commands: str
    printed: str | None
    """What they print, with `ANYTHING` for what differs; None where nothing is said of it."""
    installs: bool


@dataclass(frozen=True)
class Ran:
    """What a shell did with blocks."""

    code: int
    outputs: list[str]
    """Of the blocks that were begun."""
    errors: str


def blocks_of(document: str) -> list[Block]:
    """In the order of the document."""
    return [
        Block(found["commands"], found["printed"], bool(found["install"]))
        for found in _BLOCK.finditer(document)
    ]


def ran(blocks: list[Block], folder: Path, environment: dict[str, str]) -> Ran:
    """Runs them in one shell that begins in `folder`."""
    marked = [f"printf '{_MARK}' {at}\n{block.commands}" for at, block in enumerate(blocks)]
    script = _PRELUDE + "".join(marked)
    with (folder / "printed").open("w+") as printed, (folder / "errors").open("w+") as errors:
        # Files and not pipes: the service would hold a pipe open for a reader.
        code = subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=errors,
        ).returncode
        printed.seek(0)
        errors.seek(0)
        outputs = re.split(r"\n@@ \d+\n", printed.read())[1:]
        return Ran(code, outputs, errors.read())


def is_as_said(output: str, printed: str | None) -> bool:
    """Whether an output fits what a document says, line by line."""
    if printed is None:
        return True
    pattern = ".*".join(re.escape(part) for part in printed.strip().split(ANYTHING))
    return re.fullmatch(pattern, output.strip(), re.DOTALL) is not None
