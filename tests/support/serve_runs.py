"""Runs of `lexico serve` from start to end, each with its files in one folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from os import environ
from pathlib import Path
from typing import Final

import psutil

from tests.support.servers import address_of
from tests.support.waiting import PATIENCE_S, wait_until

_LOOK_S: Final = 0.1
"""Between two looks at all processes of the machine."""


class Run:
    """A run of `lexico serve` whose temporary files lie in a folder, with its log."""

    def __init__(self, folder: Path, log: Path, *options: str, within: Sequence[str] = ()) -> None:
        self.folder = folder
        self.address = folder / "address.json"
        self._log = log
        self._family: set[psutil.Process] = set()
        line = [sys.executable, "-m", "lexico_services", "serve", "--offload-port", "0"]
        line += ["--reload-port", "0", "--drain-seconds", "5", "--start-seconds", f"{PATIENCE_S}"]
        line += ["--address-file", str(self.address)]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*within, *line, *options],
                stdout=subprocess.DEVNULL,
                stderr=file,
                env={**environ, "TMPDIR": str(folder), "OMP_WAIT_POLICY": "passive"},
            )

    def family(self) -> set[psutil.Process]:
        """Every process that is or was our descendant, or names our folder."""
        with suppress(psutil.Error):
            self._family |= set(psutil.Process(self.process.pid).children(recursive=True))
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                # Not the environment alone: who changes his title may write over it.
                words = [process.environ().get("TMPDIR", ""), *process.cmdline()]
                if any(str(self.folder) in word for word in words):
                    self._family.add(process)
        return self._family

    def wait_until_up(self) -> dict[str, str]:
        """Service → address, once both are announced."""
        return address_of(self.process, self.address, self.said)

    def wait_until_there(self, words: str) -> None:
        """Until a process below it has a title or command line that holds these words."""
        service = psutil.Process(self.process.pid)

        def there() -> bool:
            assert self.process.poll() is None, self.said()
            with suppress(psutil.NoSuchProcess):
                return any(words in each for each in _titles(service.children(recursive=True)))
            return False

        wait_until(there, f"a process {words}", self.titles, every_s=_LOOK_S)

    def titles(self) -> list[str]:
        """Name and command line of each living process of the family."""
        return _titles(self.family())

    def end_of(self) -> int:
        """The exit code."""
        return self.process.wait(PATIENCE_S)

    def said(self) -> str:
        return self._log.read_text()

    def left(self) -> list[str]:
        """Temporary folders, and processes that do not end."""
        _, alive = psutil.wait_procs(list(self.family()), timeout=PATIENCE_S)
        names = [p.name for p in self.folder.iterdir() if p != self.address]
        return names + [f"{process}" for process in alive]

    def end(self) -> None:
        for process in self.family():
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()


def _titles(processes: Iterable[psutil.Process]) -> list[str]:
    """Name and command line of those that live."""
    found = []
    for process in processes:
        with suppress(psutil.Error):
            found.append(" ".join([process.name(), *process.cmdline()]))
    return found


class Runs:
    """Starts them; all are over when the block of `serve_runs` is."""

    def __init__(self, folder: Path, logs: Path) -> None:
        """
        Args:
            folder: of all of them.
            logs: a folder for what each of them says.
        """
        self.folder = folder
        self._logs = logs
        self._runs: list[Run] = []

    def __call__(self, *options: str, within: Sequence[str] = ()) -> Run:
        """
        Args:
            options: of `lexico serve`.
            within: a command that runs the one after it: `("unshare", "-n")`.
        """
        log = self._logs / f"{len(self._runs)}.log"
        self._runs.append(Run(self.folder, log, *options, within=within))
        return self._runs[-1]

    def end(self) -> None:
        """Kills what still runs."""
        for run in self._runs:
            run.end()


@contextmanager
def serve_runs() -> Iterator[Runs]:
    """What starts runs in a new folder."""
    # Not pytest's folder: its path is too long for Ray's sockets.
    folder = Path(tempfile.mkdtemp(prefix="lx", dir="/tmp"))
    with tempfile.TemporaryDirectory() as logs:
        runs = Runs(folder, Path(logs))
        try:
            yield runs
        finally:
            runs.end()
            shutil.rmtree(folder)
