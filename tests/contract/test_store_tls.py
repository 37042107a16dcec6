"""Stores over TLS, of every kind, with certificates on both sides."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from lexico_proto.errors import StoreUnavailable
from lexico_store import open_store
from lexico_store.child import spawn_bound
from tests.contract.store_suite import TTL_S, key_of
from tests.support.servers import (
    PASSWORD,
    PASSWORD_IN_URL,
    PATIENT,
    RedisServer,
    free_port,
    redis_server,
)
from tests.support.tls import certificate
from tests.support.waiting import wait_until

SCOPE = os.urandom(16)


@dataclass
class Certificates:
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    both: Path

    def options(self) -> tuple[str, ...]:
        """For a server that asks its clients for a certificate."""
        names = {"cert": self.server, "key": self.server_key, "ca-cert": self.both}
        files = [word for name, path in names.items() for word in (f"--tls-{name}-file", str(path))]
        return (*files, "--tls-replication", "yes")

    def query(self) -> str:
        client = f"&ssl_certfile={self.client}&ssl_keyfile={self.client_key}"
        return f"ssl_ca_certs={self.server}{client}"

    def raw(self, port: int, password: str) -> redis.Redis:
        return redis.Redis(
            port=port,
            password=password,
            ssl=True,
            host="127.0.0.1",
            ssl_ca_certs=str(self.server),
            ssl_certfile=str(self.client),
            ssl_keyfile=str(self.client_key),
        )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    server, client = certificate(folder, "server"), certificate(folder, "client")
    both = folder / "both.crt"
    both.write_text(server[0].read_text() + client[0].read_text())
    return Certificates(*server, *client, both)


@pytest.fixture(scope="module")
def server(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    folder = tmp_path_factory.mktemp("tls")
    with redis_server(folder, *certificates.options(), tls=True) as server:
        yield server


def pages_come_back(url: str) -> None:
    with open_store(url, PATIENT) as store:
        frames = [os.urandom(1 << 20), b"x" * 100, b"y" * 10_000]
        for n in range(5):
            store.commit(SCOPE, key_of(n), frames, TTL_S)
            assert store.read_page(SCOPE, key_of(n)) == frames
        lease = store.lease(SCOPE, key_of(1), TTL_S)
        assert lease is not None
        assert lease.release()
        store.look()


def test_one_server(server: RedisServer, certificates: Certificates) -> None:
    place = f"rediss://:{PASSWORD_IN_URL}@127.0.0.1:{server.port}"
    pages_come_back(f"{place}?{certificates.query()}")


@pytest.mark.parametrize("lacks", ["authority", "client certificate", "host name", "TLS"])
def test_what_is_not_trusted_is_not_spoken_to(
    server: RedisServer, certificates: Certificates, lacks: str
) -> None:
    host, query, scheme = "127.0.0.1", certificates.query(), "rediss"
    if lacks == "authority":
        query = query.partition("&")[2]
    elif lacks == "client certificate":
        query = query.partition("&")[0]
    elif lacks == "host name":
        host = "localhost"
    else:
        query, scheme = "", "redis"
    url = f"{scheme}://:{PASSWORD_IN_URL}@{host}:{server.port}?{query}"
    with open_store(url.rstrip("?"), PATIENT) as store:
        with pytest.raises(StoreUnavailable) as caught:
            store.ping()
    assert PASSWORD not in str(caught.value)


def test_a_cluster(certificates: Certificates, tmp_path: Path) -> None:
    """Of one node: what is tried is TLS alone."""
    options = (*certificates.options(), "--cluster-enabled", "yes", "--tls-cluster", "yes")
    with redis_server(tmp_path, *options, below=55_000, tls=True) as server:
        with certificates.raw(server.port, PASSWORD) as raw:
            raw.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            wait_until(
                lambda: raw.execute_command("CLUSTER INFO")["cluster_state"] == "ok", "a cluster"
            )
        place = f"rediss+cluster://:{PASSWORD_IN_URL}@127.0.0.1:{server.port}"
        pages_come_back(f"{place}?{certificates.query()}")


def test_sentinels(server: RedisServer, certificates: Certificates, tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "sentinel.conf"
    lines = ["port 0", f"tls-port {port}", "bind 127.0.0.1", f"dir {tmp_path}"]
    lines += [f"sentinel monitor pages 127.0.0.1 {server.port} 1"]
    lines += [f"sentinel auth-pass pages {PASSWORD}"]
    words = certificates.options()
    lines += [f"{words[i][2:]} {words[i + 1]}" for i in range(0, len(words), 2)]
    config.write_text("\n".join(lines) + "\n")
    argv = ["/usr/bin/env", "redis-server", str(config), "--sentinel"]
    process = spawn_bound(argv, tmp_path, tmp_path / "sentinel.log")
    try:
        with certificates.raw(port, "") as raw:

            def knows() -> bool:
                with contextlib.suppress(redis.RedisError):
                    return bool(raw.sentinel_masters()["pages"]["is_master"])
                return False

            wait_until(knows, "a sentinel that knows the primary")
        place = f"rediss+sentinel://:{PASSWORD_IN_URL}@127.0.0.1:{port}/pages"
        pages_come_back(f"{place}?{certificates.query()}")
    finally:
        process.kill()
        process.wait()
