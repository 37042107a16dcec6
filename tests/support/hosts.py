"""Hosts with addresses of their own on one machine: namespaces of network, processes and mounts.

A host has its own loopback, one device to a switch that joins them all, its own process ids, shared
memory, temporary files and /etc/hosts. Programs and the rest of the files are the machine's. Links
may be slow and lossy, and are cut and healed. Nothing leaves the namespaces, nothing enters them.

All of it ends with the process that made it, however that ends: the kernel ends what runs in a
namespace of processes with the first of them, and that is bound to us.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from lexico_store.child import spawn_bound
from tests.support.waiting import PATIENCE_S, wait_until

_APART: Final = ("unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child")
_SUBNET: Final = "10.77.0"
_PREFIX: Final = 24

_FIRST_PROCESS: Final = """
set -e
name=$1 temporary=$2 names=$3 ready=$4
hostname "$name"
mount -t tmpfs -o size=512m tmpfs /dev/shm
mount -t tmpfs -o size=1g,mode=1777 tmpfs "$temporary"
mount --bind "$names" /etc/hosts
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
ip link set lo up
echo up > "$ready"
# The first process of a namespace collects those whose parents died.
while :; do sleep 3600 & wait; done
"""


def lacking() -> str:
    """Why this machine gives us no such hosts; empty where it does."""
    for program in (_APART[0], "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"there is no {program}"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun is not there, or not for this user"
    tried = subprocess.run(
        [*_APART, "--mount-proc", "ip", "link", "add", "type", "veth"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if tried.returncode == 0 else f"namespaces are not permitted: {tried.stderr.strip()}"


@dataclass(frozen=True)
class Link:
    """How frames travel between a host and the switch."""

    delay_s: float = 0.0
    """One way."""
    loss: float = 0.0
    """Part of the frames that is lost, each way."""

    @property
    def is_plain(self) -> bool:
        """Whether the kernel alone carries them."""
        return not (self.delay_s or self.loss)


PLAIN: Final = Link()


class Host:
    """Runs processes; all of them end with it."""

    def __init__(self, name: str, address: str, network: Network) -> None:
        self.name = name
        self.address = address
        self._network = network
        self._keeper, self._first = network.separate(name)
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self._first

    @property
    def port(self) -> str:
        """Its end of the link, as the switch names it."""
        return f"to-{self.name}"

    def command(self, *argv: str) -> list[str]:
        """What runs a command on this host, from ours."""
        spaces = ("--net", "--mount", "--pid", "--uts")
        return ["nsenter", "--target", str(self._first), *spaces, "--", *argv]

    def run(self, *argv: str) -> str:
        """Output of a command that must succeed."""
        done = subprocess.run(self.command(*argv), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.name}: {' '.join(argv)}: {done.stderr}{done.stdout}"
        return done.stdout

    def start(
        self, log: str, *argv: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a program whose output goes to a log of the network, as `said` gives it.

        `cwd` is that of this process.
        """
        own = {"TMPDIR": str(self._network.temporary), **(environment or {})}
        process = spawn_bound(self.command(*argv), Path.cwd(), self._log(log), own)
        self._started.append(process)
        return process

    def converse(self, log: str, *argv: str, environment: Mapping[str, str]) -> Conversation:
        """Starts a program that answers lines."""
        own = {**os.environ, "TMPDIR": str(self._network.temporary), **environment}
        with self._log(log).open("ab") as file:
            process = subprocess.Popen(
                self.command(*argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=own,
            )
        return Conversation(process, self._log(log))

    def said(self, log: str) -> str:
        """What a program of it wrote."""
        return self._log(log).read_text(errors="replace")

    def files(self) -> Path:
        """Its temporary files, as seen from here."""
        return Path(f"/proc/{self._first}/root{self._network.temporary}")

    def cut(self) -> None:
        """Cuts it off: what it sends, and what is sent to it, is lost without a word."""
        self._network.switch.run("ip", "link", "set", self.port, "down")

    def heal(self) -> None:
        """Undoes `cut`."""
        self._network.switch.run("ip", "link", "set", self.port, "up")

    def end(self) -> None:
        """Power off: every process of it is killed, and its address is nobody's. Idempotent."""
        if psutil.pid_exists(self._first) and self._keeper.poll() is None:
            os.kill(self._first, signal.SIGKILL)
        for process in (self._keeper, *self._started):
            process.wait(PATIENCE_S)

    def _log(self, name: str) -> Path:
        return self._network.folder / f"{self.name}-{name}.log"


class Conversation:
    """One line in, one line out."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def say(self, line: str) -> None:
        """Sends a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        """The next line of the other side."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self._process.args!r} ended:\n{self._log.read_text(errors='replace')}"
        return line

    def close(self) -> None:
        """Ends standard input, and so the program."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Network:
    """Hosts around one switch."""

    def __init__(self) -> None:
        # Short, for the sockets of Ray in it.
        self.folder = Path(tempfile.mkdtemp(prefix="lxh", dir="/tmp"))
        self.temporary = self.folder / "t"
        self.temporary.mkdir()
        self.hosts: dict[str, Host] = {}
        self._lines: list[subprocess.Popen[bytes]] = []
        self._hosts_file = self.folder / "hosts"
        self._hosts_file.write_text("127.0.0.1 localhost\n")
        self.switch = Host("switch", "", self)
        self.switch.run("ip", "link", "add", "bridge", "type", "bridge")
        self.switch.run("ip", "link", "set", "bridge", "up")

    def add(self, *names: str, link: Link = PLAIN) -> None:
        """Hosts, each with the next address."""
        for name in names:
            host = Host(name, f"{_SUBNET}.{len(self.hosts) + 2}", self)
            self.hosts[name] = host
            self._connect(host, link)
            with self._hosts_file.open("a") as file:  # every host has it mounted
                file.write(f"{host.address} {name}\n")

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def separate(self, name: str) -> tuple[subprocess.Popen[bytes], int]:
        """New namespaces: who keeps them, and their first process."""
        ready = self.folder / f"{name}-ready"
        argv = [*_APART, "--mount-proc", "sh", "-c", _FIRST_PROCESS, "sh", name]
        argv += [str(self.temporary), str(self._hosts_file), str(ready)]
        log = self.folder / f"{name}.log"
        keeper = spawn_bound(argv, Path.cwd(), log)

        def is_up() -> bool:
            assert keeper.poll() is None, log.read_text()
            return ready.exists()

        wait_until(is_up, f"the namespaces of {name}", log.read_text)
        (first,) = psutil.Process(keeper.pid).children()
        return keeper, first.pid

    def end(self) -> None:
        """Ends every host and what runs on it."""
        for line in self._lines:
            line.kill()
            line.wait()
        for host in [*self.hosts.values(), self.switch]:
            host.end()
        shutil.rmtree(self.folder)

    def _connect(self, host: Host, link: Link) -> None:
        if link.is_plain:
            peer = ["peer", "name", "eth0", "netns", str(host.pid)]
            # By the machine's process ids, so not from within the switch's.
            here = ["nsenter", "--target", str(self.switch.pid), "--net"]
            line = [*here, "ip", "link", "add", host.port, "type", "veth", *peer]
            subprocess.run(line, check=True, capture_output=True)
        else:
            self._connect_slowly(host, link)
        self.switch.run("ip", "link", "set", host.port, "master", "bridge", "up")
        host.run("ip", "address", "add", f"{host.address}/{_PREFIX}", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")

    def _connect_slowly(self, host: Host, link: Link) -> None:
        ready = self.folder / f"{host.name}-line"
        argv = [sys.executable, "-m", "tests.support.delay_line", str(host.pid), "eth0"]
        argv += [str(self.switch.pid), host.port, str(link.delay_s), str(link.loss), "0"]
        log = self.folder / f"{host.name}-line.log"
        line = spawn_bound(argv, Path.cwd(), log, {"READY_FILE": str(ready)})
        self._lines.append(line)

        def is_up() -> bool:
            assert line.poll() is None, log.read_text()
            return ready.exists()

        wait_until(is_up, f"the line of {host.name}", log.read_text)


@contextmanager
def network() -> Iterator[Network]:
    """An empty network; it ends with the block."""
    made = Network()
    try:
        yield made
    finally:
        made.end()
