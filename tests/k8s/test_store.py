"""The store's configuration, users and scripts, with real servers."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from k8s.checks.pods import Pod, pods
from k8s.checks.rendering import COMPONENTS, Rendering, base_with
from k8s.new_secrets import secrets_of
from lexico_store import open_store
from lexico_store.child import spawn_bound
from lexico_store.embedded import find_server
from tests.support.servers import free_port, free_port_below
from tests.support.waiting import PATIENCE_S, wait_until

SECRETS = {each["metadata"]["name"]: each["stringData"] for each in secrets_of(["team-a"])}
STORE = SECRETS["lexico-store"]


@dataclass(frozen=True)
class Server:
    """A running Valkey."""

    port: int
    folder: Path

    def client(self, user: str, password: str) -> Any:
        return redis.Redis(port=self.port, username=user, password=password, decode_responses=True)

    @property
    def operator(self) -> Any:
        return self.client("operator", STORE["operator-password"])


def pod_of(rendering: Rendering, component: str) -> Pod:
    return next(pod for pod in pods(rendering) if pod.component == component)


def config_of(rendering: Rendering, name: str) -> Mapping[str, str]:
    """Data of a ConfigMap whose name has a digest behind it."""
    (found,) = (
        each
        for each in rendering.of_kind("ConfigMap")
        if each["metadata"]["name"].rpartition("-")[0] == name
    )
    data: Mapping[str, str] = found["data"]
    return data


@contextmanager
def valkey(folder: Path, conf: str, secret: Mapping[str, str], *options: str) -> Iterator[Server]:
    """Valkey with a configuration of ours, whose paths are made those of a folder."""
    folder.mkdir(exist_ok=True)
    for name, text in secret.items():
        (folder / name).write_text(text)
    port = wait_until(lambda: free_port_below(55_000), "a port whose bus has one too")
    conf = conf.replace("/etc/valkey/auth", str(folder)).replace("/data", str(folder))
    conf = conf.replace("port 6379", f"port {port}").replace("bind * -::*", "bind 127.0.0.1")
    (folder / "valkey.conf").write_text(conf)
    here = [each.replace("/etc/valkey/auth", str(folder)) for each in options]
    here = [each.replace("/data", str(folder)) for each in here]
    argv = [str(find_server("wheel")), str(folder / "valkey.conf"), *here]
    process = spawn_bound(argv, folder, folder / "log")
    try:
        server = Server(port, folder)
        wait_until(lambda: told(port, "PING"), "an answer", lambda: (folder / "log").read_text())
        yield server
    finally:
        process.kill()
        process.wait()


def told(port: int, line: str) -> str:
    """What a server says to somebody without a password; empty while it is not there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
            connection.sendall(f"{line}\r\n".encode())
            return connection.recv(1000).decode().strip()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def store_conf() -> str:
    return config_of(base_with(), "lexico-store-config")["valkey.conf"]


def test_the_look_at_start_finds_nothing(store_conf: str, tmp_path: Path) -> None:
    with valkey(tmp_path / "one", store_conf, STORE) as server:
        password = server.folder / "password"
        url = f"redis://lexico@127.0.0.1:{server.port}/0?password_file={password}"
        with open_store(url) as store:
            assert [str(each) for each in store.look()] == []
        assert told(server.port, "PING") == "+PONG"  # as the kubelet asks
        assert told(server.port, "GET lx1:x").startswith("-NOPERM")


def test_memory_fits_the_limit_of_the_pod(store_conf: str) -> None:
    bounds = dict(line.split()[:2] for line in store_conf.splitlines() if line[:1].isalpha())
    assert bounds["maxmemory"] == "6gb"
    (container,) = pod_of(base_with(), "store").containers
    assert container["resources"]["limits"]["memory"] == "8Gi"


@pytest.mark.timeout(2 * PATIENCE_S)
def test_the_head_of_ray_keeps_its_state(tmp_path: Path) -> None:
    conf = config_of(base_with(), "lexico-ray-state-config")["valkey.conf"]
    secret = SECRETS["lexico-ray-state"]
    with valkey(tmp_path / "state", conf, secret) as server:
        (tmp_path / "token").write_text("token-of-ray" * 4)
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
            "RAY_REDIS_ADDRESS": f"127.0.0.1:{server.port}",
            "RAY_external_storage_namespace": "lexico",
            "REDIS_PASSWORD": secret["password"],
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.ray_head"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "by-the-first"
        assert told(server.port, "GET RAY:cluster").startswith("-NOAUTH")


def test_sentinels_may_fail_over(store_conf: str, tmp_path: Path) -> None:
    conf = config_of(base_with("sentinel"), "lexico-sentinel")["sentinel.conf"]
    include = ("--include", "/etc/valkey/auth/replication.conf")
    with ExitStack() as stack:
        primary = stack.enter_context(valkey(tmp_path / "0", store_conf, STORE, *include))
        follow = (*include, "--replicaof", f"127.0.0.1 {primary.port}")
        replica = stack.enter_context(valkey(tmp_path / "1", store_conf, STORE, *follow))
        wait_until(
            lambda: replica.operator.info("replication").get("master_link_status") == "up",
            "a copy",
            lambda: (replica.folder / "log").read_text(),
        )
        watch = stack.enter_context(sentinel(tmp_path / "s", conf, primary.port))
        wait_until(
            lambda: [r["master-link-status"] for r in watch.sentinel_slaves("lexico")] == ["ok"],
            "a replica that the sentinel takes for a good one",
            lambda: watch.sentinel_slaves("lexico"),
        )
        watch.execute_command("SENTINEL", "FAILOVER", "lexico")
        wait_until(
            lambda: replica.operator.info("replication")["role"] == "master",
            "a replica that took over",
            lambda: (tmp_path / "s" / "log").read_text(),
        )


@contextmanager
def sentinel(folder: Path, conf: str, primary: int) -> Iterator[Any]:
    folder.mkdir()
    port = free_port()
    conf = conf.replace("port 26379", f"port {port}").replace("dir /data", f"dir {folder}")
    conf = conf.replace("lexico-store-0.lexico-store 6379", f"127.0.0.1 {primary}")
    conf = conf.replace("bind * -::*", "bind 127.0.0.1")
    (folder / "sentinel.conf").write_text(conf + STORE["sentinel.conf"])
    argv = [str(find_server("wheel")), str(folder / "sentinel.conf"), "--sentinel"]
    process = spawn_bound(argv, folder, folder / "log")
    try:
        wait_until(lambda: told(port, "PING"), "an answer", lambda: (folder / "log").read_text())
        with redis.Redis(port=port, decode_responses=True) as client:
            yield client
    finally:
        process.kill()
        process.wait()


def test_the_job_makes_a_cluster_and_leaves_one_alone(store_conf: str, tmp_path: Path) -> None:
    rendering = base_with("cluster")
    arguments = pod_of(rendering, "store").containers[0]["args"][1:]
    arguments = [each.replace("$(POD_NAME).lexico-store", "localhost") for each in arguments]
    tools = tmp_path / "bin"
    tools.mkdir()
    cli = shutil.which("redis-cli")
    assert cli is not None, "redis-cli is not on PATH: run `make test`, or install redis-tools"
    (tools / "valkey-cli").symlink_to(cli)
    script = COMPONENTS / "cluster" / "cluster.sh"
    with ExitStack() as stack:
        servers = [
            stack.enter_context(valkey(tmp_path / f"{i}", store_conf, STORE, *arguments))
            for i in range(3)
        ]
        environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "NODES": " ".join(f"127.0.0.1:{server.port}" for server in servers),
            "REDISCLI_AUTH": STORE["operator-password"],
            "REPLICAS": "0",
        }
        before: list[object] = []
        for _ in range(2):  # the second time there is one
            done = subprocess.run(
                ["sh", str(script)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert "cluster_state:ok" in done.stdout
            slots = servers[0].operator.execute_command("CLUSTER SLOTS")
            owners = [(first, last, node[2]) for first, last, node in slots]
            assert before in ([], owners)
            before = owners
        password = servers[0].folder / "password"
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        with open_store(f"redis+cluster://lexico@{hosts}?password_file={password}") as store:
            assert [str(each) for each in store.look()] == []
            store.ping()


STUBS = {
    # Sentinels that name a primary, or are not there.
    "valkey-cli": 'test -n "$PRIMARY" || exit 1\necho "$PRIMARY"\necho 6379\n',
    "valkey-server": 'echo "server $@"\n',
    "valkey-sentinel": 'echo "sentinel $@"\n',
}


@pytest.fixture
def stubs(tmp_path: Path) -> str:
    """PATH with programs that say what they are given."""
    for name, text in STUBS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)
    return f"{tmp_path / 'bin'}:{os.environ['PATH']}"


def run(script: str, **environment: str) -> str:
    done = subprocess.run(
        ["sh", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("pod", "primary", "follows"),
    [
        ("lexico-store-0", "", ""),
        ("lexico-store-1", "", "lexico-store-0.lexico-store"),
        ("lexico-store-0", "lexico-store-2.lexico-store", "lexico-store-2.lexico-store"),
        ("lexico-store-2", "lexico-store-2.lexico-store", ""),
        ("lexico-store-1", "10.0.0.7", "lexico-store-0.lexico-store"),
    ],
)
def test_a_server_follows_whom_the_sentinels_name(
    pod: str, primary: str, follows: str, stubs: str
) -> None:
    script = (COMPONENTS / "sentinel" / "start.sh").read_text()
    line = run(script, POD_NAME=pod, PRIMARY=primary, PATH=stubs)
    assert line.startswith("server /etc/valkey/config/valkey.conf --include /etc/valkey/auth/")
    assert f"--replica-announce-ip {pod}.lexico-store" in line
    assert line.endswith(f"--replicaof {follows} 6379") if follows else "replicaof" not in line


def test_a_sentinel_keeps_what_it_found(stubs: str, tmp_path: Path) -> None:
    script = (COMPONENTS / "sentinel" / "sentinel.sh").read_text()
    for name in ("config", "auth", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sentinel.conf").write_text(f"# {name}\n" if name != "data" else "")
        script = script.replace(f"/etc/valkey/{name}", str(tmp_path / name))
    file = tmp_path / "data" / "sentinel.conf"
    script = script.replace("/data/sentinel.conf", str(file))
    assert run(script, POD_NAME="lexico-sentinel-1", PATH=stubs) == f"sentinel {file}"
    made = "# config\n# auth\nsentinel announce-ip lexico-sentinel-1.lexico-sentinel\n"
    assert file.read_text() == made
    file.write_text("# found\n")
    run(script, POD_NAME="lexico-sentinel-1", PATH=stubs)
    assert file.read_text() == "# found\n"
