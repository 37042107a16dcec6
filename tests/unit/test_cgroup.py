"""CPUs and memory that a container allows, from both versions of cgroups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lexico_proto.cgroup import cores, cpu_quota, memory, memory_limit
from lexico_store.embedded import DEFAULT_MAXMEMORY, default_maxmemory

GIB = 1 << 30
UNLIMITED_V1 = "9223372036854771712"


class Machine:
    """A /proc, and what is mounted."""

    def __init__(self, folder: Path, cgroup: str, mounts: dict[str, str], root: str = "/") -> None:
        """
        Args:
            folder: for all of it.
            cgroup: text of /proc/self/cgroup.
            mounts: folder → file system type and its options.
            root: of every mount.
        """
        self.proc, self._folder = folder / "proc", folder
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self/cgroup").write_text(cgroup)
        lines = ["22 1 0:20 / / rw shared:1 - ext4 /dev/root rw"]
        for name, kind in mounts.items():
            (folder / name).mkdir()
            kind, options = kind.split()
            lines.append(f"30 22 0:26 {root} {folder / name} rw - {kind} {kind} rw,{options}")
        (self.proc / "self/mountinfo").write_text("\n".join(lines) + "\n")
        (self.proc / "meminfo").write_text("MemTotal:       16777216 kB\nMemFree: 1 kB\n")

    def write(self, name: str, text: str) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_version_2_counts_the_groups_above(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/pod/container\n", {"unified": "cgroup2 nsdelegate"})
    machine.write("unified/pod/container/cpu.max", "max 100000")
    machine.write("unified/pod/cpu.max", "150000 100000")
    machine.write("unified/pod/container/memory.max", str(2 * GIB))
    machine.write("unified/pod/memory.max", "max")
    assert cpu_quota(machine.proc) == 1.5
    assert cores(machine.proc) == min(2, len(os.sched_getaffinity(0)))
    assert memory_limit(machine.proc) == memory(machine.proc) == 2 * GIB


def test_version_1_with_its_mounts_apart(tmp_path: Path) -> None:
    machine = Machine(
        tmp_path,
        "5:cpu,cpuacct:/lx\n4:memory:/lx\n1:name=systemd:/\n0::/\n",
        {"cpu": "cgroup cpu,cpuacct", "memory": "cgroup memory", "unified": "cgroup2 nsdelegate"},
    )
    machine.write("cpu/lx/cpu.cfs_quota_us", "50000")
    machine.write("cpu/lx/cpu.cfs_period_us", "100000")
    machine.write("cpu/cpu.cfs_quota_us", "-1")
    machine.write("memory/lx/memory.limit_in_bytes", str(GIB))
    machine.write("memory/memory.limit_in_bytes", UNLIMITED_V1)
    assert cpu_quota(machine.proc) == 0.5
    assert cores(machine.proc) == 1
    assert memory_limit(machine.proc) == GIB


@pytest.mark.parametrize(("root", "path"), [("/docker/1a", "/docker/1a"), ("/", "/docker/1a")])
def test_a_container_sees_its_own_group_by_another_name(
    tmp_path: Path, root: str, path: str
) -> None:
    machine = Machine(tmp_path, f"4:memory:{path}\n", {"memory": "cgroup memory"}, root)
    machine.write("memory/memory.limit_in_bytes", str(GIB))
    assert memory_limit(machine.proc) == GIB


def test_no_limit_is_the_machines(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/\n", {"unified": "cgroup2 nsdelegate"})
    assert (cpu_quota(machine.proc), memory_limit(machine.proc)) == (None, None)
    assert memory(machine.proc) == 16 * GIB
    assert cores(machine.proc) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["", "nonsense", "0::\n", "7:memory"])
def test_what_cannot_be_read_limits_nothing(tmp_path: Path, text: str) -> None:
    machine = Machine(tmp_path, text, {"unified": "cgroup2 nsdelegate"})
    machine.write("unified/cpu.max", text)
    assert (cpu_quota(machine.proc), memory_limit(machine.proc)) == (None, None)
    absent = tmp_path / "absent"
    assert (cpu_quota(absent), memory(absent)) == (None, None)


@pytest.mark.parametrize(
    ("there", "most"),
    [(None, DEFAULT_MAXMEMORY), (64 * GIB, DEFAULT_MAXMEMORY), (GIB, GIB * 2 // 5)],
)
def test_an_embedded_store_leaves_room_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, there: int | None, most: int
) -> None:
    monkeypatch.setattr("lexico_proto.cgroup.memory", lambda: there)
    assert default_maxmemory() == most
