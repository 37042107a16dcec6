"""Containerfiles, by hadolint."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Final

from k8s.checks.rendering import HERE, Problem, program

ROOT: Final = HERE.parent
PASSED_OVER: Final = {
    "DL3008": "versions of Debian's packages are those of the base, which is named by its digest",
}
"""Rules that do not hold here, and why."""


def containerfiles() -> list[Path]:
    """Those of the project."""
    folders = [folder for folder in ROOT.iterdir() if folder.is_dir() and folder.name[0] != "."]
    found = [
        *ROOT.glob("*Containerfile*"),
        *(p for f in folders for p in f.rglob("Containerfile*")),
    ]
    return sorted(found)


def check(files: list[Path] | None = None) -> list[Problem]:
    """What hadolint says of them.

    Args:
        files: None for all of the project.
    """
    files = containerfiles() if files is None else files
    if not files:
        return []
    ignored = [f"--ignore={rule}" for rule in PASSED_OVER]
    command = [program("hadolint"), "--format=json", *ignored, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode > 1 or not done.stdout:
        raise RuntimeError(f"hadolint: {done.stderr.strip()}")
    return [
        Problem(
            f"{Path(each['file']).name} line {each['line']}", f"{each['code']} {each['message']}"
        )
        for each in json.loads(done.stdout)
    ]
