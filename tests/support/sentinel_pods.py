"""Pods of the component `sentinel` as processes here: their own scripts, with files and ports of a
test's own in place of a pod's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis

from k8s.checks.rendering import Rendering
from lexico_store.child import spawn_bound
from lexico_store.embedded import find_server
from tests.support.authorities import Authority
from tests.support.servers import free_port
from tests.support.store_pods import NOT_OF_REDIS_7, STORE, config_of, connected, told
from tests.support.waiting import wait_until

MEMBERS: Final = 3
_SOONER: Final = {"failover-timeout lexico 30000": "failover-timeout lexico 3000"}
"""A failover that failed is tried again after twice these milliseconds."""


@dataclass
class SentinelPod:
    """A server of the store, or a sentinel."""

    name: str
    port: int
    folder: Path
    """What its pod has below `/etc/valkey`, and `/data` as `data`."""
    tls: bool
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What its script and it said, since it began first."""
        return (self.folder / "log").read_text()

    def client(self, user: str | None = None, password: str | None = None) -> Any:
        """A connection of redis-py."""
        authority = self.folder / "tls" / "ca.crt" if self.tls else None
        return connected(self.port, authority, user, password)

    def role(self) -> list[Any]:
        """What a server says of itself; empty while it is not there, or drops its callers."""
        with self.client("operator", STORE["operator-password"]) as client:
            try:
                said: list[Any] = client.role()
            except redis.RedisError:
                return []
        return said

    def found(self) -> list[int]:
        """Ports of the primaries that its script found, at each start without state."""
        return [int(port) for port in re.findall(r"^the primary is .*:(\d+)$", self.log, re.M)]

    def primary(self) -> int:
        """Port of whom a sentinel watches; 0 while it does not answer."""
        with self.client() as client:
            try:  # redis-py 7.0 cannot read the answer to `get-master-addr-by-name`
                return int(client.sentinel_masters()["lexico"]["port"])
            except (redis.RedisError, KeyError):
                return 0

    def start(self, **environment: str) -> None:
        """As its container begins, which does not wait for it to answer."""
        path = f"{self.folder.parent / 'bin'}:{os.environ['PATH']}"
        script = self.folder / ("start" if "store" in self.name else "config") / "start.sh"
        given = {"PATH": path, "POD_NAME": self.name, **environment}
        self.process = spawn_bound(["sh", str(script)], self.folder, self.folder / "log", given)

    def answers(self) -> bool:
        """Whether it does."""
        return bool(told(self.port, "PING", self.tls))

    def end(self) -> None:
        """At once, with all that its emptyDir had."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None
        shutil.rmtree(self.folder / "data")
        (self.folder / "data").mkdir()


@dataclass
class SentinelPods:
    """All six, none of which runs."""

    stores: list[SentinelPod] = field(default_factory=list)
    sentinels: list[SentinelPod] = field(default_factory=list)

    @property
    def logs(self) -> str:
        """The ends of all of them."""
        return "\n".join(
            f"{each.name} {each.port}: {each.log[-1500:]}"
            for each in (*self.stores, *self.sentinels)
            if (each.folder / "log").exists()
        )

    def whole(self) -> SentinelPod:
        """The primary, once both others copy it and all sentinels watch it."""

        def found() -> SentinelPod | None:
            roles = {each.port: each.role() for each in self.stores}
            primaries = [port for port, role in roles.items() if role[:1] == ["master"]]
            following = [role[2] for role in roles.values() if role[3:4] == ["connected"]]
            watched = [each.primary() for each in self.sentinels]
            if len(primaries) == 1 and following == primaries * 2 and watched == primaries * 3:
                return next(each for each in self.stores if each.port == primaries[0])
            return None

        made = wait_until(found, "a primary that all agree on", lambda: self.logs)
        assert made is not None
        return made


@contextmanager
def sentinel_pods(
    folder: Path, rendering: Rendering, authority: Authority | None = None
) -> Iterator[SentinelPods]:
    """The pods of a rendering; what still runs in the end is killed.

    Args:
        authority: of certificates, where the rendering has TLS; then by the redis-server of PATH.
    """
    _lay_programs(folder / "bin", authority)
    ports = {
        f"lexico-{kind}-{i}.lexico-{kind}:{port}": free_port()
        for kind, port in (("store", 6379), ("sentinel", 26379))
        for i in range(MEMBERS)
    }
    pods = SentinelPods()
    for name, port in ports.items():
        pod = SentinelPod(name.partition(".")[0], port, folder / name.partition(".")[0], False)
        pod.tls = authority is not None
        _lay(pod, rendering, ports, authority)
        (pods.stores if "store" in pod.name else pods.sentinels).append(pod)
    try:
        yield pods
    finally:
        for pod in (*pods.stores, *pods.sentinels):
            pod.end()


def _lay_programs(folder: Path, authority: Authority | None) -> None:
    folder.mkdir(parents=True)
    cli = shutil.which("redis-cli")
    assert cli is not None, "redis-cli is not on PATH: run `make test`, or install redis-tools"
    server = find_server("wheel") if authority is None else shutil.which("redis-server")
    assert server is not None, "redis-server is not on PATH: run `make test`"
    (folder / "valkey-cli").symlink_to(cli)
    (folder / "valkey-server").symlink_to(server)
    (folder / "valkey-sentinel").write_text(f'#!/bin/sh\nexec {server} "$@" --sentinel\n')
    (folder / "valkey-sentinel").chmod(0o755)


def _lay(
    pod: SentinelPod, rendering: Rendering, ports: Mapping[str, int], authority: Authority | None
) -> None:
    store_config = config_of(rendering, "lexico-store-config")
    if "store" in pod.name:
        config, start = store_config, config_of(rendering, "lexico-store-start")
    else:
        config, start = config_of(rendering, "lexico-sentinel"), {}
    mounts = {"auth": STORE, "config": config, "start": start, "store": store_config, "data": {}}
    own = {f"port {name.rpartition(':')[2]}": f"port {port}" for name, port in ports.items()
           if name.startswith(pod.name)}  # fmt: skip
    own |= {f"$POD_NAME.{name.partition('.')[2]}": f"127.0.0.1:{port}"
            for name, port in ports.items() if name.startswith(pod.name)}  # fmt: skip
    others = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    places = {"/etc/valkey": str(pod.folder), "/data": str(pod.folder / "data")}
    bound = {"bind * -::*": "bind 127.0.0.1", NOT_OF_REDIS_7: ""}
    for mount, files in mounts.items():
        (pod.folder / mount).mkdir(parents=True)
        for name, text in files.items():
            for old, new in {**own, **others, **places, **bound, **_SOONER}.items():
                text = text.replace(old, new)
            (pod.folder / mount / name).write_text(text)
    if authority is not None:
        issued = authority.issue()
        (pod.folder / "tls").mkdir()
        (pod.folder / "tls" / "tls.crt").write_bytes(issued.chain)
        (pod.folder / "tls" / "tls.key").write_bytes(issued.key)
        (pod.folder / "tls" / "ca.crt").write_bytes(authority.pem)
