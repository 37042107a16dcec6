"""The server as a child: it starts or says why not, and never outlives us."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lexico_proto.errors import ConfigurationError, StoreUnavailable
from lexico_store import EmbeddedServer, open_store
from lexico_store import child as child_module
from lexico_store import embedded as embedded_module
from lexico_store.embedded import LOG_NAME, find_server
from tests.support.servers import PATIENT, embedded_server
from tests.support.waiting import PATIENCE_S, linger, wait_until

ROOT = Path(__file__).parents[2]
SLEEP = ["sleep", "3600"]

PARENT = """
import sys, threading
from tests.support.servers import embedded_server
found = []
def start(): found.append(embedded_server())
if sys.argv[1] == "thread":
    thread = threading.Thread(target=start); thread.start(); thread.join()
else:
    start()
print(found[0].pid, found[0].url, flush=True)
if sys.argv[2] == "leave":
    sys.exit(0)
sys.stdin.read()
"""


def start_parent(where: str, then: str) -> tuple[subprocess.Popen[str], int, str]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, where, then],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid, url = parent.stdout.readline().split()
    return parent, int(pid), url


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # dead; whoever inherited it has not asked yet


def wait_until_gone(pid: int) -> None:
    wait_until(lambda: is_gone(pid), f"the end of process {pid}")


@pytest.mark.parametrize("where", ["main", "thread"])
def test_killed_parent_takes_its_server_along(where: str) -> None:
    parent, pid, url = start_parent(where, "wait")
    with parent:
        with open_store(url, PATIENT) as store:
            store.ping()
        linger()
        assert not is_gone(pid)
        parent.send_signal(signal.SIGKILL)
    wait_until_gone(pid)
    # Nobody is left to do it: the one thing that a killed parent leaves behind.
    shutil.rmtree(Path(url.removeprefix("unix://")).parent)


def test_parent_that_leaves_ends_its_server_and_tidies_up() -> None:
    parent, pid, url = start_parent("main", "leave")
    with parent:
        assert parent.wait(PATIENCE_S) == 0
    wait_until_gone(pid)
    assert not Path(url.removeprefix("unix://")).parent.exists()


def test_without_setpriv_the_child_is_bound_all_the_same(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from lexico_store import child
child._binding = lambda _, find=child._binding: find(None)
here = Path({str(tmp_path)!r})
print(child.spawn_bound({SLEEP}, here, here / "log").pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        linger()
        assert not is_gone(pid)
        parent.kill()
    wait_until_gone(pid)


@pytest.mark.parametrize("own", [None, "dirty_decay_ms:5000"])
def test_the_allocator_keeps_memory_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    monkeypatch.delenv("MALLOC_CONF", raising=False)
    if own is not None:
        monkeypatch.setenv("MALLOC_CONF", own)
    asked: list[Mapping[str, str]] = []

    def spawn(*arguments: Any) -> subprocess.Popen[bytes]:
        asked.append(arguments[-1])
        return child_module.spawn_bound(*arguments)

    monkeypatch.setattr(embedded_module, "spawn_bound", spawn)
    with EmbeddedServer():
        pass
    assert asked == [{"MALLOC_CONF": own or "dirty_decay_ms:-1,muzzy_decay_ms:-1"}]


def test_a_child_has_what_its_environment_is_to_have(tmp_path: Path) -> None:
    command, log = ["sh", "-c", 'echo "$LX_ONE $HOME"'], tmp_path / "log"
    child_module.spawn_bound(command, tmp_path, log, {"LX_ONE": "one"}).wait()
    assert log.read_text() == f"one {os.environ['HOME']}\n"


def test_child_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    children: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        child = child_module.spawn_bound(SLEEP, tmp_path, tmp_path / "log")
        children.append(child)
        # Or the thread is gone before the child has asked for the signal, which it does first.
        name = Path(f"/proc/{child.pid}/comm")
        wait_until(lambda: name.read_text() == "sleep\n", "a child that sleeps", name.read_text)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    linger()
    assert children[0].poll() is None
    children[0].kill()
    children[0].wait()


def test_forked_copy_spawns_and_spares_the_parents_server() -> None:
    with embedded_server() as server:
        copy = os.fork()
        if copy == 0:
            try:
                server.close()
                embedded_server().close()
            except BaseException:  # noqa: BLE001  (a forked pytest must not go on)
                os._exit(1)
            os._exit(0)
        assert os.waitpid(copy, 0)[1] == 0
        with open_store(server.url, PATIENT) as store:
            store.ping()


def test_own_directory_is_private_and_goes(tmp_path: Path) -> None:
    with embedded_server() as server:
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
        assert server.log_path.stat().st_size > 0
    assert not server.directory.exists()
    wait_until_gone(server.pid)
    server.close()


def test_given_directory_is_made_and_kept(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    with embedded_server(directory) as server:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        with pytest.raises(ConfigurationError, match="another server"):
            EmbeddedServer(directory, server="wheel")
        with open_store(server.url, PATIENT) as store:
            store.ping()
    assert directory.exists()
    assert not server.socket_path.exists()


def test_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigurationError, match="chmod 700"):
        EmbeddedServer(tmp_path, server="wheel")


def test_directory_too_deep_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="too long"):
        EmbeddedServer(tmp_path / ("x" * 100), server="wheel")


def test_no_tcp_port_is_open() -> None:
    with embedded_server() as server:
        sockets = {
            os.readlink(fd)
            for fd in Path(f"/proc/{server.pid}/fd").iterdir()
            if fd.is_symlink() and os.path.lexists(fd)
        }
        inodes = {s[8:-1] for s in sockets if s.startswith("socket:[")}
        assert inodes
        for table in ("tcp", "tcp6"):
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            assert not inodes & {line.split()[9] for line in lines}


def test_server_that_dies_at_its_start_shows_its_log(tmp_path: Path) -> None:
    script = tmp_path / "server"
    script.write_text("#!/bin/sh\necho FATAL no such option >&2\nexit 3\n")
    script.chmod(0o700)
    with pytest.raises(StoreUnavailable, match=r"(?s)status 3.*FATAL no such option"):
        EmbeddedServer(server=str(script), start_timeout_s=PATIENCE_S)


def test_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    script = tmp_path / "server"
    script.write_text("#!/bin/sh\nexec sleep 3600\n")
    script.chmod(0o700)
    directory = tmp_path / "s"
    directory.mkdir(mode=0o700)
    (directory / LOG_NAME).write_text("thinking")  # whenever it is that the script would begin
    with pytest.raises(StoreUnavailable, match=r"(?s)0.3 s.*thinking"):
        EmbeddedServer(directory, server=str(script), start_timeout_s=0.3)


def test_order_of_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server("auto") == find_server("wheel")
    with pytest.raises(ConfigurationError, match="valkey-server"):
        find_server("path")
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o700)
        assert find_server("auto") == tmp_path / name
        assert find_server("path") == tmp_path / name
    assert find_server(str(tmp_path / "redis-server")) == tmp_path / "redis-server"
    assert find_server("wheel").name == "valkey-server"
