"""`lexico serve` on a machine that lacks something: a line that says what, or service all the same.

In namespaces of their own, with mounts and networks that nobody else sees; where those are not
permitted the tests are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.serve_runs import Run, Runs, serve_runs
from tests.support.waiting import PATIENCE_S

MOUNTED = """
mount --make-rprivate / && mount -t tmpfs -o "$1" tmpfs "$2" || exit 77
shift 2
exec "$@"
"""
NO_IPV6 = """
ip link set lo up && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 || exit 77
exec "$@"
"""
ASK = """
import sys
from lexico_client import Client, Timeouts
seconds = float(sys.argv[3])
with Client(reload=sys.argv[1], offload=sys.argv[2], timeouts=Timeouts(match=seconds)) as client:
    said = client.describe(timeout=seconds)
    assert said.reload and said.offload, said
    client.list_dictionaries(timeout=seconds)
"""


@pytest.fixture
def start() -> Iterator[Runs]:
    with serve_runs() as runs:
        yield runs


def permitted(*command: str) -> None:
    """Skips the test where a namespace may not be made."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not there")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    if done.returncode:
        pytest.skip(f"not permitted: {' '.join(command[:2])}: {done.stderr.strip()}")


def on_a_disk(start: Runs, options: str, folder: Path, *serve: str) -> Run:
    """A run that finds a file system of its own in `folder`."""
    mounted = ("unshare", "-m", "sh", "-c", MOUNTED, "sh", options, str(folder))
    permitted(*mounted, "true")
    return start(*serve, within=mounted)


def last_line(run: Run) -> str:
    assert run.end_of() == 2, run.said()
    assert "Traceback" not in run.said()
    return run.said().strip().splitlines()[-1]


def test_a_full_disk_is_one_line(start: Runs) -> None:
    """The folder of temporary files, on 4 MiB."""
    run = on_a_disk(start, "size=4m,mode=700", start.folder)
    assert last_line(run) == (
        f"lexico: {start.folder} has 4 MiB free, 64 MiB are needed: "
        "free some, or set TMPDIR to a folder with more"
    )
    assert run.left() == []


def test_a_folder_of_the_store_without_room_is_one_line(start: Runs) -> None:
    """A full file system that has no place for another file."""
    folder = start.folder / "state"
    folder.mkdir()
    run = on_a_disk(start, "nr_inodes=1,mode=700", folder, "--store", f"embedded://{folder}")
    assert last_line(run).startswith(f"lexico: embedded store: cannot write {folder}/")
    assert last_line(run).endswith("No space left on device")
    folder.rmdir()
    assert run.left() == []


def test_without_ipv6_the_service_is_up(start: Runs) -> None:
    """On a loopback that has no ::1."""
    alone = ("unshare", "-n", "sh", "-c", NO_IPV6, "sh")
    permitted(*alone, "true")
    run = start(within=alone)
    address = run.wait_until_up()
    within = ("nsenter", "-n", "-t", str(run.process.pid))
    ask = [*within, sys.executable, "-c", ASK, address["reload"], address["offload"]]
    subprocess.run([*ask, str(PATIENCE_S)], check=True, timeout=PATIENCE_S)
    run.process.terminate()
    assert run.end_of() == 0, run.said()
    assert run.left() == []
