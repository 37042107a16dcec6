"""What becomes of code in a forked child, tried in a process of its own."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

from tests.support.waiting import PATIENCE_S

CHILDS_PATIENCE_S = PATIENCE_S / 2
"""Below that of the program, which does not say which child hangs."""


def in_child(work: Callable[[], Any], in_order: bool = True) -> Any:
    """Forks; what `work` returns in the child, as JSON carries it.

    Args:
        work: to be done in the child.
        in_order: the child ends as a program does. Else at once, as those of multiprocessing do:
            at an orderly end torch itself crashes (2.13, libgomp) where the parent's forking
            thread had used OpenMP.

    Raises:
        AssertionError: it raised, died, or was still at it after `CHILDS_PATIENCE_S`.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        status = 1
        try:
            os.write(write, json.dumps(work()).encode())
            status = 0
        except BaseException:  # noqa: BLE001 - the parent is told by the status
            traceback.print_exc()
        sys.exit(status) if in_order else os._exit(status)
    os.close(write)
    ended = _end_of(child, CHILDS_PATIENCE_S)
    assert ended is not None, "the child hangs"
    assert ended == 0, f"the child ended with {ended}"
    with os.fdopen(read, "rb") as pipe:
        return json.loads(pipe.read())


def _end_of(child: int, patience_s: float) -> int | None:
    """The status that it ends with; None for one that had to be killed."""
    end = time.monotonic() + patience_s
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.01)
    return ended[1]


class Programs:
    """Runs Python programs, each in a process of its own that has some modules imported already: it
    is forked from one that has done nothing else. Imports of torch would take most of the time.

    A fork of pytest's process would have pytest's threads to forget as well.
    """

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder

    def __call__(self, program: str, *arguments: str) -> Any:
        """What a program prints last, as JSON carries it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out, err = self._folder / "out", self._folder / "err"
        asked = [textwrap.dedent(program), list(arguments), str(out), str(err)]
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "0\n", err.read_text()
        return json.loads(out.read_text().splitlines()[-1])


@contextmanager
def programs(*modules: str) -> Iterator[Programs]:
    """Ends with the block.

    Args:
        modules: to be imported once.
    """
    # Programs run as `python -c` has them, in the module `__main__`, and end as it does.
    begin = "from tests.support import forking; exec(forking._next_program())"
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", begin, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Programs(process, Path(folder))
            process.stdin.close()
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _next_program() -> CodeType:
    """Imports modules, then forks for each program that it is given: returns in the children."""
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        program, arguments, out, err = json.loads(line)
        child = os.fork()
        if child == 0:
            for number, path in enumerate((os.devnull, out, err)):
                opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(opened, number)
                os.close(opened)
            sys.argv[1:] = arguments
            return compile(program, "<string>", "exec")
        os.write(1, f"{_end_of(child, PATIENCE_S)}\n".encode())
    os._exit(0)  # the orderly end of so many modules takes its time


def run_program(program: str) -> Any:
    """What a Python program prints last, as JSON carries it; it imports what it needs itself."""
    with programs() as run:
        return run(program)
