"""The process above a service: what it passes on, and that nothing is left however a run ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import PATIENCE_S, linger, wait_until

PROGRAM = """
import fcntl, os, signal, subprocess, sys, tempfile, threading
from pathlib import Path
from lexico_services import supervisor
from lexico_services.process import on_reload, stop_event

def note(text):
    with open({notes!r}, "a") as file:
        file.write(text + "\\n")

def orphan():  # as Ray's agents: its parent has ended, and it hears no SIGTERM
    code = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"
    start = "import subprocess as s, sys; p = s.Popen([sys.executable, '-c', sys.argv[1]],"
    start += "stdout=s.PIPE, start_new_session=True); p.stdout.readline(); print(p.pid)"
    line = [sys.executable, "-c", start, code]
    return subprocess.check_output(line, stderr=subprocess.DEVNULL, text=True)

def work():
    stopped = stop_event()
    on_reload("test", lambda: note("reloaded"))
{work}

raise SystemExit(supervisor.run(work))
"""

UP = """
    tempfile.mkdtemp()
    note(f"up {os.getpid()} {supervisor.folder()}")
"""
UNTIL_STOPPED = (
    UP
    + """
    stopped.wait()
    note("stopped")
    return 0
"""
)


class Run:
    """A supervised program."""

    def __init__(self, place: Path, work: str) -> None:
        self.place = place
        self._notes = place / "notes"
        program = PROGRAM.format(notes=str(self._notes), work=work)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "TMPDIR": str(place)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.service = 0

    def notes(self) -> list[str]:
        return self._notes.read_text().splitlines() if self._notes.exists() else []

    def wait_for(self, word: str) -> list[str]:
        """The words of the first note that begins so."""

        def noted() -> list[str]:
            return next((n.split() for n in self.notes() if n.startswith(word)), [])

        return wait_until(noted, f"a note {word}", self.notes)

    def wait_until_up(self) -> Path:
        _, pid, folder = self.wait_for("up")
        self.service = int(pid)
        return Path(folder)

    def end(self) -> tuple[int, str]:
        """Exit code, and what was said."""
        _, said = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, said

    def left(self) -> list[str]:
        """Folders of the run."""
        return [path.name for path in self.place.iterdir() if path != self._notes]


@pytest.fixture
def start() -> Iterator[Callable[[str], Run]]:
    # Not pytest's folder: its path is too long for Ray's sockets.
    place = Path(tempfile.mkdtemp(prefix="lx", dir="/tmp"))
    runs: list[Run] = []

    def started(work: str) -> Run:
        runs.append(Run(place, work))
        return runs[-1]

    yield started
    for run in runs:
        for pid in (run.process.pid, run.service):
            with suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGKILL)
        run.process.communicate()
    shutil.rmtree(place)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_is_the_services_and_its_files_go(
    start: Callable[[str], Run], code: int
) -> None:
    run = start(UP + f"    return {code}")
    folder = run.wait_until_up()
    assert run.end() == (code, "")
    assert folder.parent == run.place
    assert run.left() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_and_a_second_one_changes_nothing(
    start: Callable[[str], Run], number: signal.Signals
) -> None:
    run = start(UNTIL_STOPPED)
    run.wait_until_up()
    os.killpg(run.process.pid, number)  # as a terminal does
    run.process.send_signal(number)
    assert run.end() == (0, "")
    assert run.notes().count("stopped") == 1


def test_the_end_of_a_terminal_ends_nothing(start: Callable[[str], Run]) -> None:
    run = start(UNTIL_STOPPED)
    run.wait_until_up()
    assert os.getsid(run.service) == run.service
    os.killpg(run.process.pid, signal.SIGHUP)
    run.wait_for("reloaded")
    linger()
    assert run.process.poll() is None
    run.process.terminate()
    assert run.end() == (0, "")


def test_what_a_service_started_ends_with_it_however_slowly_it_dies(
    start: Callable[[str], Run],
) -> None:
    # Threads that are ending keep the service a zombie, and its children its own, for a moment.
    threads = """
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    for _ in range(200):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    note(f"child {child.pid}")
"""
    run = start(threads + UNTIL_STOPPED)
    run.wait_until_up()
    child = int(run.wait_for("child")[1])
    os.kill(run.service, signal.SIGKILL)
    assert run.end()[0] == 1
    assert is_gone(run.service)
    assert is_gone(child)
    assert run.left() == []


def test_a_service_that_is_killed_leaves_nothing(start: Callable[[str], Run]) -> None:
    run = start(
        """
    held = open(Path(tempfile.gettempdir()).with_name("held"), "w")
    fcntl.flock(held, fcntl.LOCK_EX)
    supervisor.leaves(Path(held.name))
    note("orphan " + orphan())
"""
        + UNTIL_STOPPED
    )
    run.wait_until_up()
    orphan = int(run.wait_for("orphan")[1])
    assert not is_gone(orphan)
    os.kill(run.service, signal.SIGKILL)
    code, said = run.end()
    assert (code, said) == (1, "lexico: the service was killed by SIGKILL; the rest was ended\n")
    assert is_gone(orphan)
    assert run.left() == []


@pytest.mark.parametrize("group", [False, True])
def test_the_service_ends_in_order_where_the_supervisor_is_killed(
    start: Callable[[str], Run], group: bool
) -> None:
    run = start(UNTIL_STOPPED)
    folder = run.wait_until_up()
    if group:
        os.killpg(run.process.pid, signal.SIGKILL)
    else:
        run.process.kill()
    run.wait_for("stopped")
    wait_until(lambda: is_gone(run.service), "the end of the service")
    assert not folder.exists()


def test_an_end_that_takes_too_long_is_cut_off(start: Callable[[str], Run]) -> None:
    run = start("    supervisor.ends_within(2.5)\n" + UP + "    threading.Event().wait()")
    run.wait_until_up()
    run.process.terminate()
    code, said = run.end()
    assert code == 0
    assert said == "lexico: the end took over 0.5 s: what still ran was killed\n"
    assert is_gone(run.service)
    assert run.left() == []


def test_an_end_of_its_own_is_held_to_the_deadline_too(start: Callable[[str], Run]) -> None:
    run = start(
        "    supervisor.ends_within(2.5)\n"
        + UP
        + "    supervisor.ends_because('the store is gone')\n"
        + "    supervisor.ending()\n    threading.Event().wait()"
    )
    run.wait_until_up()
    code, said = run.end()
    assert code == 1
    assert said.startswith("lexico: the store is gone; the end took over 0.5 s")


def test_the_next_start_removes_what_nobody_was_left_to_remove(
    start: Callable[[str], Run],
) -> None:
    living, killed = start(UNTIL_STOPPED), start(UNTIL_STOPPED.replace('f"up', 'f"also'))
    kept = living.wait_until_up()
    _, pid, folder = killed.wait_for("also")
    killed.service = int(pid)
    os.kill(killed.process.pid, signal.SIGSTOP)  # it sees nothing
    os.kill(killed.service, signal.SIGKILL)
    killed.process.kill()
    killed.end()
    assert Path(folder).exists()
    assert start("    return 0").end() == (0, "")
    assert not Path(folder).exists()
    assert kept.exists()


@pytest.mark.parametrize("command", ["serve", "offload-server", "reload-server"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_modules_are_imported_ends_with_0(
    command: str, number: signal.Signals
) -> None:
    line = [sys.executable, "-m", "lexico_services", command, "--store", "redis://127.0.0.1:1"]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    status = Path(f"/proc/{process.pid}/status")

    def caught() -> bool:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        # Python catches SIGINT from its start on, and names it when it does.
        return bool(int(fields["SigCgt"], 16) >> (signal.SIGHUP - 1) & 1)

    wait_until(caught, "handlers of signals")
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (0, "")
