"""The whole service with each part on a host of its own, by mutual TLS: Redis, a reload server, a
head of Ray that takes no work, two nodes of Ray with an ingress and an encoder each, and two nodes
of inference, one of them behind a slow and lossy link.

    store   reload   ray-head   ray-a   ray-b   near   far

`ingress` is a name of ray-a and of ray-b, by a name server. Tenants are known by their
certificates.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.support.authorities import Authority
from tests.support.hosts import Conversation, Host, Link, Network, network
from tests.support.waiting import PATIENCE_S, wait_until

STORE, RELOAD, HEAD, NEAR, FAR = "store", "reload", "ray-head", "near", "far"
WORKERS: Final = ("ray-a", "ray-b")
INGRESS: Final = "ingress"
SLOW: Final = Link(delay_s=0.025, loss=0.01)
TENANT: Final = "spiffe://apart/team-a"

_PASSWORD: Final = secrets.token_hex(16)
_RAY_IS_UP: Final = "Ray runtime started"
_OBJECT_STORE: Final = f"--object-store-memory={100 << 20}"
_SETTINGS: Final = """
[listen]
host = "0.0.0.0"
health_address = "0.0.0.0:7413"
drain_s = 5.0
start_s = {patience}
[tls]
certificate = "{own}/tls.pem"
key = "{own}/tls.key"
client_ca = "{own}/ca.pem"
tenants_file = "{own}/tenants"
[offload]
max_inflight_bytes = "32 MiB"
[encoder]
min_replicas = 2
max_replicas = 2
num_cpus = 0.9
num_gpus = 0.0
threads = 1
lease_ttl_s = 15.0
[reload]
match_timeout_s = {patience}
[log]
level = "info"
"""


class Apart:
    """The service, and what a test does to it."""

    def __init__(self, hosts: Network, stack: ExitStack) -> None:
        self.hosts = hosts
        self._stack = stack
        self._authority = Authority("authority")
        self._stranger = Authority("stranger")
        self._own = hosts.temporary
        self._driver: Conversation | None = None
        self._nodes: dict[str, Conversation] = {}
        self.ray: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Every part of it, in the order in which one needs the other."""
        self.hosts.add(STORE, RELOAD, HEAD, *WORKERS, NEAR)
        self.hosts.add(FAR, link=SLOW)
        for host in self.hosts.hosts.values():
            self._furnish(host)
        self._start_store()
        self._start_reload()
        self._start_head()
        for name in WORKERS:
            self.start_worker(name)
        for name in WORKERS:
            self._wait(self.ray[name], self.hosts[name], "ray", _RAY_IS_UP)
        self._deploy()
        self._start_nodes()

    def _deploy(self) -> None:
        """Has Ray Serve run the application, as a RayService does."""
        application = {
            "name": "lexico",
            "route_prefix": None,
            "import_path": "lexico_services.offload.application:build",
            "args": {"config": f"{self._own}/lexico.toml", "ingresses": len(WORKERS)},
        }
        config = {"proxy_location": "Disabled", "applications": [application]}
        told = self._ask_driver({"deploy": config})
        assert told["status"] == "RUNNING", told["message"]

    def start_worker(self, name: str) -> None:
        """A node of Ray that may have an ingress; it is up once Serve has put one there."""
        where = f"--address={self.hosts[HEAD].address}:6379"
        resources = """--resources={"lexico_ingress": 1}"""
        self._start_ray(name, where, "--num-cpus=1", resources, _OBJECT_STORE)

    def replicas(self, deployment: str) -> dict[str, str]:
        """Host → state, of the replicas of a deployment."""
        return {
            self._names.get(each["host"], "nowhere"): each["state"].removeprefix("ReplicaState.")
            for each in self._ask_driver("replicas")
            if each["deployment"] == deployment
        }

    def encoded(self, name: str) -> int:
        """Pages that encoders of a host have encoded so far."""
        logs = self.hosts[name].files().glob("ray/session_2*/logs/worker-*.err")
        return sum(log.read_text(errors="replace").count("CALL encode OK") for log in logs)

    def call(self, node: str, *calls: dict[str, Any]) -> list[dict[str, Any]]:
        """Has a node make these calls at the same time, and returns once all have ended."""
        self.begin(node, *calls)
        return self.end_of(node)

    def begin(self, node: str, *calls: dict[str, Any]) -> None:
        """Has a node begin calls."""
        self._nodes[node].say(json.dumps(calls))

    def end_of(self, node: str) -> list[dict[str, Any]]:
        """What became of the calls that a node began."""
        answers: list[dict[str, Any]] = json.loads(self._nodes[node].hear())
        return answers

    def client(
        self,
        offload: str = INGRESS,
        shown: str = "node",
        trusted: str = "ca",
        shown_to_ingress: str | None = None,
        timeouts: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """A client of a node.

        Args:
            offload: name of the host, or hosts, with the ingress.
            shown: which certificate it shows; none for an empty name.
            trusted: which authorities it trusts.
            shown_to_ingress: another certificate, for that one.
            timeouts: of the client's; without them it is patient.
        """
        to_ingress = shown if shown_to_ingress is None else shown_to_ingress
        return {
            "reload": {"address": f"{RELOAD}:7412", "tls": self._tls(shown, trusted)},
            "offload": {"address": f"{offload}:7411", "tls": self._tls(to_ingress, trusted)},
            "timeouts": dict(timeouts or {}),
        }

    @contextmanager
    def cut(self, name: str) -> Iterator[None]:
        """A host is cut off until the block ends."""
        self.hosts[name].cut()
        try:
            yield
        finally:
            self.hosts[name].heal()

    def restart_worker_if_ended(self, name: str) -> None:
        """Ray's processes of a node end by themselves once its head has given the node up."""
        if self.ray[name].poll() is not None:
            self.start_worker(name)

    def _tls(self, shown: str, trusted: str) -> dict[str, str]:
        tls = {"ca": f"{self._own}/{trusted}.pem"}
        if shown:
            tls |= {"certificate": f"{self._own}/{shown}.pem", "key": f"{self._own}/{shown}.key"}
        return tls

    def _furnish(self, host: Host) -> None:
        """Certificates and settings, at the same place on every host."""
        files = host.files()
        (files / "ca.pem").write_bytes(self._authority.pem)
        (files / "strangers-ca.pem").write_bytes(self._stranger.pem)
        names = [host.name, host.address, *([INGRESS] if host.name in WORKERS else [])]
        self._authority.issue(names).write(files, "tls")
        if host.name in (NEAR, FAR):
            self._authority.issue((), [TENANT]).write(files, "node")
            self._stranger.issue((), [TENANT]).write(files, "stranger")
        (files / "tenants").write_text(f"{TENANT} team-a offload,reload\n")
        (files / "password").write_text(_PASSWORD)
        (files / "token").write_text("5" * 64)
        (files / "lexico.toml").write_text(_SETTINGS.format(own=self._own, patience=PATIENCE_S))

    @property
    def _names(self) -> dict[str, str]:
        return {host.address: host.name for host in self.hosts.hosts.values()}

    @property
    def _environment(self) -> dict[str, str]:
        own = self._own
        files = f"ssl_ca_certs={own}/ca.pem&ssl_certfile={own}/tls.pem&ssl_keyfile={own}/tls.key"
        return {
            "LEXICO_STORE": f"rediss://{STORE}:6379/0?{files}&password_file={own}/password",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": f"{own}/token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            # An encoder that a busy machine keeps from answering at once is not passed over.
            "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "5",
            "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "5",
        }

    def _start_store(self) -> None:
        host, own = self.hosts[STORE], self._own
        (host.files() / "redis.conf").write_text(
            f"port 0\ntls-port 6379\nbind {host.address}\nrequirepass {_PASSWORD}\n"
            f"tls-cert-file {own}/tls.pem\ntls-key-file {own}/tls.key\n"
            f"tls-ca-cert-file {own}/ca.pem\ntls-auth-clients yes\nsave ''\n"
            "maxmemory 256mb\nmaxmemory-policy volatile-ttl\nmaxmemory-samples 64\n"
        )
        process = host.start("redis", "redis-server", f"{own}/redis.conf")
        self._wait(process, host, "redis", "Ready to accept connections")

    def _start_reload(self) -> None:
        host = self.hosts[RELOAD]
        line = [sys.executable, "-m", "lexico_services", "reload-server"]
        line += ["--config", f"{self._own}/lexico.toml", "--address-file", f"{self._own}/address"]
        process = host.start("reload", *line, environment=self._environment)

        def is_up() -> bool:
            assert process.poll() is None, host.said("reload")
            return (host.files() / "address").exists()

        wait_until(is_up, "the reload server", lambda: host.said("reload"))

    def _start_head(self) -> None:
        host = self.hosts[HEAD]
        line = ["--head", f"--node-ip-address={host.address}", "--port=6379", "--num-cpus=0"]
        line += ["--include-dashboard=false", "--no-monitor", f"--temp-dir={self._own}/ray"]
        self._start_ray(HEAD, *line, _OBJECT_STORE)
        self._wait(self.ray[HEAD], host, "ray", _RAY_IS_UP)
        self._driver = host.converse(
            "driver",
            *(sys.executable, "-m", "tests.support.ray_driver", f"{host.address}:6379"),
            environment=self._environment,
        )
        self._stack.callback(self._driver.close)

    def _start_nodes(self) -> None:
        names = {INGRESS: [self.hosts[name].address for name in WORKERS]}
        for name in (NEAR, FAR):
            node = self.hosts[name].converse(
                *("node", sys.executable, "-m", "tests.support.apart_node"),
                environment={"NAMES": json.dumps(names)},
            )
            self._stack.callback(node.close)
            self._nodes[name] = node

    def _start_ray(self, name: str, *options: str) -> None:
        host = self.hosts[name]
        line = [sys.executable, "-m", "tests.support.ray_host", "start", "--block", *options]
        self.ray[name] = host.start("ray", *line, environment=self._environment)

    def _wait(self, process: subprocess.Popen[bytes], host: Host, log: str, words: str) -> None:
        def is_up() -> bool:
            assert process.poll() is None, host.said(log)
            return words in host.said(log)

        wait_until(is_up, f"{words} on {host.name}", lambda: host.said(log))

    def _ask_driver(self, asked: object) -> Any:
        assert self._driver is not None
        self._driver.say(json.dumps(asked))
        return json.loads(self._driver.hear())


@contextmanager
def running() -> Iterator[Apart]:
    """All of it; it ends with the block."""
    with network() as hosts, ExitStack() as stack:
        apart = Apart(hosts, stack)
        try:
            apart.start()
        except BaseException:
            keep_logs(hosts.folder)
            raise
        yield apart


def keep_logs(folder: Path) -> None:
    """What every program said, to standard error: the folder goes."""
    for log in sorted(folder.glob("*.log")):
        sys.stderr.write(f"==== {log.name}\n{log.read_text(errors='replace')[-4000:]}\n")
