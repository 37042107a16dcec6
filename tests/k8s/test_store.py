"""The store's configuration, users and scripts, with real servers."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from redis.crc import key_slot

from k8s.checks.rendering import COMPONENTS, Rendering, base_with
from lexico_store import open_store
from tests.support.authorities import Authority
from tests.support.store_pods import (
    OPTIONS_NOT_OF_REDIS_7,
    SECRETS,
    STORE,
    Server,
    config_of,
    pod_of,
    sentinel,
    told,
    valkey,
)
from tests.support.waiting import PATIENCE_S, wait_until

Conf = Mapping[str, str]
MONITOR = "sentinel monitor lexico lexico-store-0.lexico-store 6379 2\n"
"""As sentinel.sh writes it."""


def over_tls(*shape: str) -> Rendering:
    """The base with a shape of the store, over TLS."""
    return base_with("cert-manager", *shape, "store-tls")


@pytest.fixture(scope="module")
def store_conf() -> Conf:
    return config_of(base_with(), "lexico-store-config")


@pytest.fixture(scope="module")
def tls_conf() -> Conf:
    return config_of(over_tls(), "lexico-store-config")


def test_the_look_at_start_finds_nothing(store_conf: Conf, tmp_path: Path) -> None:
    with valkey(tmp_path / "one", store_conf, STORE) as server:
        password = server.folder / "password"
        url = f"redis://lexico@127.0.0.1:{server.port}/0?password_file={password}"
        with open_store(url) as store:
            assert [str(each) for each in store.look()] == []
        assert server.told("PING") == "+PONG"  # as the kubelet asks
        assert server.told("GET lx1:x").startswith("-NOPERM")


def test_a_store_with_tls_has_nothing_else(tls_conf: Conf, tmp_path: Path) -> None:
    rendering = over_tls()
    (url,) = (
        config_of(rendering, "lexico-store-url")[variable["valueFrom"]["configMapKeyRef"]["key"]]
        for variable in pod_of(rendering, "reload").containers[0]["env"]
        if variable["name"] == "LEXICO_STORE"
    )
    (container,) = pod_of(rendering, "store").containers
    with valkey(tmp_path / "one", tls_conf, STORE, authority=Authority()) as server:
        url = server.here(url.replace("lexico-store:6379", f"localhost:{server.port}"))
        with open_store(url) as store:
            assert [str(each) for each in store.look()] == []
        # As the kubelet asks.
        valkey_cli, *words = map(server.here, container["readinessProbe"]["exec"]["command"])
        command = [valkey_cli.replace("valkey", "redis"), "-p", str(server.port), *words]
        assert subprocess.run(command, capture_output=True, text=True).stdout == "PONG\n"
        assert told(server.port, "PING") != "+PONG"


@pytest.mark.parametrize("shape", [(), ("sentinel",), ("cluster",)], ids=" ".join)
def test_a_certificate_has_the_name_of_every_server(shape: tuple[str, ...]) -> None:
    """Those that URLs have, and those by which servers tell of each other."""
    rendering = over_tls(*shape)
    certificate = rendering.find("Certificate", "lexico-store")
    assert certificate is not None
    url = config_of(rendering, "lexico-store-url")["url-tls"]
    hosts = urlsplit(url).netloc.partition("@")[2]
    names = {host.partition(":")[0] for host in hosts.split(",")}
    for each in rendering.of_kind("StatefulSet"):
        name, spec = each["metadata"]["name"], each["spec"]
        if shape and re.fullmatch("lexico-(store|sentinel)", name):
            names |= {f"{name}-{i}.{spec['serviceName']}" for i in range(spec["replicas"])}
    assert names <= set(certificate["spec"]["dnsNames"])


def test_memory_fits_the_limit_of_the_pod(store_conf: Conf) -> None:
    bounds = dict(
        line.split()[:2] for line in store_conf["valkey.conf"].splitlines() if line[:1].isalpha()
    )
    assert bounds["maxmemory"] == "6gb"
    (container,) = pod_of(base_with(), "store").containers
    assert container["resources"]["limits"]["memory"] == "8Gi"
    # A replica that is not empty takes a copy by a file.
    for rendering in (base_with(), base_with("cluster")):
        made = rendering.find("StatefulSet", "lexico-store")
        assert made is not None
        assert "8Gi" in str([*_volumes(made), *made["spec"].get("volumeClaimTemplates", ())])


def _volumes(made: Mapping[str, Any]) -> list[Any]:
    """Where `/data` may be."""
    found = made["spec"]["template"]["spec"]["volumes"]
    return [each for each in found if each["name"] == "data"]


@pytest.mark.parametrize("kept", [False, True], ids=["empty", "with-pages"])
def test_a_replica_leaves_no_file_that_pages_would_come_back_from(
    store_conf: Conf, tmp_path: Path, kept: bool
) -> None:
    include = ("--include", "/etc/valkey/auth/replication.conf")
    with ExitStack() as stack:
        primary = stack.enter_context(valkey(tmp_path / "0", store_conf, STORE, *include))
        replica = stack.enter_context(valkey(tmp_path / "1", store_conf, STORE, *include))
        primary.operator.set("lx1:page", "theirs")
        if kept:
            replica.operator.set("lx1:page", "its own")
        replica.operator.replicaof("127.0.0.1", primary.port)
        wait_until(
            lambda: replica.operator.info("replication").get("master_link_status") == "up",
            "a copy",
            lambda: (replica.folder / "log").read_text(),
        )
        assert replica.operator.get("lx1:page") == "theirs"
        assert list(replica.folder.rglob("*.rdb")) == []


@pytest.mark.timeout(2 * PATIENCE_S)
def test_the_head_of_ray_keeps_its_state(tmp_path: Path) -> None:
    conf = config_of(base_with(), "lexico-ray-state-config")
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
        assert server.told("GET RAY:cluster").startswith("-NOAUTH")


def _role(client: redis.Redis) -> str:
    """Of a server, which drops its callers when that changes; redis-py 7.0 then asks only once."""
    try:
        role: str = client.info("replication")["role"]
    except redis.ConnectionError:
        return ""
    return role


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_sentinels_may_fail_over(
    store_conf: Conf, tls_conf: Conf, tmp_path: Path, tls: bool
) -> None:
    made = config_of(over_tls("sentinel") if tls else base_with("sentinel"), "lexico-sentinel")
    lines, authority = f"{made['sentinel.conf']}{STORE['sentinel.conf']}{MONITOR}", None
    if tls:  # as sentinel.sh puts them together
        lines, authority = f"{lines}{tls_conf['tls.conf']}tls-port 26379\n", Authority()
    conf = tls_conf if tls else store_conf
    include = ("--include", "/etc/valkey/auth/replication.conf")
    with ExitStack() as stack:
        first = valkey(tmp_path / "0", conf, STORE, *include, authority=authority)
        primary = stack.enter_context(first)
        follow = (*include, "--replicaof", f"127.0.0.1 {primary.port}")
        second = valkey(tmp_path / "1", conf, STORE, *follow, authority=authority)
        replica = stack.enter_context(second)
        wait_until(
            lambda: replica.operator.info("replication").get("master_link_status") == "up",
            "a copy",
            lambda: (replica.folder / "log").read_text(),
        )
        watching = stack.enter_context(sentinel(tmp_path / "s", lines, primary.port, authority))
        watch = stack.enter_context(watching.client())
        wait_until(
            lambda: [r["master-link-status"] for r in watch.sentinel_slaves("lexico")] == ["ok"],
            "a replica that the sentinel takes for a good one",
            lambda: watch.sentinel_slaves("lexico"),
        )
        if tls:
            url = config_of(over_tls("sentinel"), "lexico-store-url")["url-tls"]
            hosts = urlsplit(url).netloc.partition("@")[2]
            url = primary.here(url.replace(hosts, f"127.0.0.1:{watching.port}"))
            with open_store(url) as store:
                store.ping()
        watch.execute_command("SENTINEL", "FAILOVER", "lexico")
        wait_until(
            lambda: _role(replica.operator) == "master",
            "a replica that took over",
            lambda: (tmp_path / "s" / "log").read_text(),
        )


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_job_makes_a_cluster_and_leaves_one_alone(
    store_conf: Conf, tls_conf: Conf, tmp_path: Path, tls: bool
) -> None:
    conf, authority = (tls_conf, Authority()) if tls else (store_conf, None)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                valkey(tmp_path / f"{i}", conf, STORE, *_options(tls), authority=authority)
            )
            for i in range(3)
        ]
        before: list[object] = []
        for _ in range(2):  # the second time there is one
            done = _job(tmp_path, servers, "0")
            assert done.returncode == 0, done.stdout + done.stderr
            assert "cluster_state:ok" in done.stdout
            slots = servers[0].operator.execute_command("CLUSTER SLOTS")
            owners: list[object] = [(first, last, node[2]) for first, last, node in slots]
            assert before in ([], owners)
            before = owners
        urls = config_of(over_tls("cluster"), "lexico-store-url")
        url = urls["url-tls" if tls else "url"]
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        url = servers[0].here(url.replace(urlsplit(url).netloc.partition("@")[2], hosts))
        with open_store(url) as store:
            assert [str(each) for each in store.look()] == []
            store.ping()


def test_a_primary_of_a_cluster_that_ends_has_its_replica_take_over(
    store_conf: Conf, tmp_path: Path
) -> None:
    """At once, and not after the timeout: who is back before that is empty, and so is its replica
    then."""
    options = _options(tls=False)
    options[options.index("--cluster-node-timeout") + 1] = str(round(2000 * PATIENCE_S))
    with ExitStack() as stack:
        servers = [
            stack.enter_context(valkey(tmp_path / f"{i}", store_conf, STORE, *options))
            for i in range(6)
        ]
        done = _job(tmp_path, servers, "1")
        assert done.returncode == 0, done.stdout + done.stderr
        primary = next(each for each in servers if _role(each.operator) == "master")
        raw = primary.operator
        owned = {s[2][1]: range(s[0], s[1] + 1) for s in raw.execute_command("CLUSTER SLOTS")}
        names = map(str, itertools.count())
        name = next(each for each in names if key_slot(each.encode()) in owned[primary.port])
        replica = wait_until(
            lambda: next((each for each in servers if _follows(each.operator, primary)), None),
            "a replica that copies",
        )
        assert replica is not None
        raw.set(name, "kept")
        assert raw.wait(1, round(1000 * PATIENCE_S)) == 1
        os.kill(int(raw.info("server")["process_id"]), signal.SIGTERM)
        wait_until(lambda: _role(replica.operator) == "master", "a replica that took over")
        assert replica.operator.get(name) == "kept"


def _options(tls: bool) -> list[str]:
    """Of a server of the cluster; over TLS it is Redis 7."""
    found = pod_of(base_with("cluster"), "store").containers[0]["args"][1:]
    options = [each.replace("$(POD_NAME).lexico-store", "localhost") for each in found]
    return [o for o in options if not tls or o not in OPTIONS_NOT_OF_REDIS_7]


def _job(
    folder: Path, servers: Sequence[Server], replicas: str
) -> subprocess.CompletedProcess[str]:
    """Runs the script that makes a cluster of servers."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    cli = shutil.which("redis-cli")
    assert cli is not None, "redis-cli is not on PATH: run `make test`, or install redis-tools"
    if not (tools / "valkey-cli").exists():
        (tools / "valkey-cli").symlink_to(cli)
    script = servers[0].here((COMPONENTS / "cluster" / "cluster.sh").read_text())
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "NODES": " ".join(f"127.0.0.1:{server.port}" for server in servers),
        "REDISCLI_AUTH": STORE["operator-password"],
        "REPLICAS": replicas,
    }
    return subprocess.run(
        ["sh", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def _follows(raw: Any, primary: Server) -> bool:
    """Whether a server copies another."""
    role = raw.role()
    return bool(role[0] == "slave" and role[2] == primary.port and role[3] == "connected")
