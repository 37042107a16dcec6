"""`lexico serve` from start to end: stopped on the way, short of something, or robbed of a part."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from os import environ
from pathlib import Path

import psutil
import pytest

from tests.support.servers import address_of
from tests.support.waiting import PATIENCE_S, wait_until


class Run:
    """A run of `lexico serve` whose temporary files lie in one folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.address = folder / "address.json"
        self._log = folder / "log"
        self._family: set[psutil.Process] = set()
        line = [sys.executable, "-m", "lexico_services", "serve", "--offload-port", "0"]
        line += ["--reload-port", "0", "--drain-seconds", "5", "--start-seconds", f"{PATIENCE_S}"]
        line += ["--address-file", str(self.address)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*line, *options],
                stdout=subprocess.DEVNULL,
                stderr=log,
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

    def wait_until_up(self) -> None:
        address_of(self.process, self.address, self.said)

    def wait_until_there(self, words: str) -> None:
        """Until the family has a process whose title or command line holds these words."""

        def there() -> bool:
            assert self.process.poll() is None, self.said()
            return any(words in title for title in self.titles())

        wait_until(there, f"a process {words}", self.titles)

    def titles(self) -> list[str]:
        """Name and command line of each living process of the family."""
        found = []
        for process in self.family():
            with suppress(psutil.Error):
                found.append(" ".join([process.name(), *process.cmdline()]))
        return found

    def end_of(self) -> int:
        """The exit code."""
        return self.process.wait(PATIENCE_S)

    def said(self) -> str:
        return self._log.read_text()

    def left(self) -> list[str]:
        """Temporary folders, and processes that do not end."""
        _, alive = psutil.wait_procs(list(self.family()), timeout=PATIENCE_S)
        names = [p.name for p in self.folder.iterdir() if p not in (self.address, self._log)]
        return names + [f"{process}" for process in alive]

    def end(self) -> None:
        for process in self.family():
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    # Not pytest's folder: its path is too long for Ray's sockets.
    folder = Path(tempfile.mkdtemp(prefix="lx", dir="/tmp"))
    runs: list[Run] = []

    def started(*options: str) -> Run:
        runs.append(Run(folder, *options))
        return runs[-1]

    yield started
    for run in runs:
        run.end()
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "part",
    ["reload-server", "gcs_server", "raylet/raylet", "ray::ServeController"],
    ids=["reload-server", "gcs", "raylet", "serve"],
)
def test_sigterm_during_the_start_ends_in_order(start: Callable[..., Run], part: str) -> None:
    run = start()
    run.wait_until_there(part)
    run.process.send_signal(signal.SIGTERM)
    assert run.end_of() == 0, run.said()
    assert not run.address.exists(), "it was up before the signal"
    assert "Traceback" not in run.said()
    assert "SIGTERM received" not in run.said()
    assert run.left() == []


def test_what_ray_lacks_ends_the_start(start: Callable[..., Run]) -> None:
    run = start("--encoder-cpus", "1000")
    assert run.end_of() == 2
    assert "1000 CPU" in run.said().strip().splitlines()[-1]
    assert run.left() == []


def test_rays_session_is_private_and_the_loss_of_the_store_ends_all(
    start: Callable[..., Run],
) -> None:
    run = start("--log-level", "info")
    run.wait_until_up()
    (folder,) = run.folder.glob("lx-*/ray-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    (session,) = folder.glob("r/session_2*")
    assert (session / "sockets" / "plasma_store").is_socket()
    logs = [path.read_text() for path in (session / "logs").glob("worker-*.err")]
    assert sum("logger=lexico_worker.deployment encoder=up" in log for log in logs) == 1
    (store,) = (p for p in run.family() if p.name() in ("redis-server", "valkey-server"))
    store.kill()
    assert run.end_of() == 1
    assert "lexico: the embedded store is gone" in run.said()
    assert run.left() == []


def test_the_loss_of_ray_ends_all(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_until_up()
    (gcs,) = (p for p in run.family() if p.name() == "gcs_server")
    gcs.kill()
    assert run.end_of() == 1
    assert run.said().strip().splitlines()[-1] == "lexico: Ray's gcs_server ended by itself"
    # Where the kernel cannot hand them to us, Ray's agents go by themselves within a minute.
    assert run.left() == []


def test_a_closed_terminal_harms_nothing_and_a_service_that_is_killed_leaves_nothing(
    start: Callable[..., Run],
) -> None:
    run = start("--log-level", "info")
    run.wait_until_up()
    (service,) = psutil.Process(run.process.pid).children()
    run.process.send_signal(signal.SIGHUP)
    done = ["reload=ingress done", "reload=reload server done"]
    wait_until(lambda: all(line in run.said() for line in done), "files read again", run.said)
    second = start("--address-file", str(run.address))
    assert second.end_of() == 2
    assert second.said().splitlines()[-1].startswith("lexico: address file")
    assert run.address.exists()
    run.family()
    service.kill()
    assert run.end_of() == 1
    assert run.said().splitlines()[-1].startswith("lexico: the service was killed by SIGKILL")
    assert not run.address.exists()
    assert run.left() == []


def test_the_loss_of_the_supervisor_ends_all_in_order(start: Callable[..., Run]) -> None:
    run = start("--log-level", "info")
    run.wait_until_up()
    run.family()
    run.process.kill()
    run.end_of()
    assert run.left() == []
    assert "logger=lexico_services.serve stopping" in run.said()
    assert not run.address.exists()
