"""What becomes of code in a forked child, tried in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable
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
    end = time.monotonic() + CHILDS_PATIENCE_S
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.01)
    assert ended[1] == 0, f"the child ended with {ended[1]}"
    with os.fdopen(read, "rb") as pipe:
        return json.loads(pipe.read())


def run_program(program: str, *arguments: str) -> Any:
    """What a Python program prints last, as JSON carries it. It has a process of its own: a fork of
    pytest's would have pytest's threads to forget as well."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
