"""Redis as it is handed over, on loopback: a primary that sentinels watch, and a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import redis
from redis.crc import key_slot

from lexico_store.child import spawn_bound
from tests.support.servers import PASSWORD, PASSWORD_IN_URL, RedisServer, free_port, redis_server
from tests.support.waiting import wait_until

SERVICE = "pages"
SENTINEL_PASSWORD = "sentinels-own"
DOWN_AFTER_MS = 1000
NODE_TIMEOUT_MS = 1500


def client_of(server: RedisServer) -> Any:
    """A plain redis-py client of one server."""
    return redis.Redis(port=server.port, password=PASSWORD)


def tells(server: RedisServer, *command: str) -> str:
    """A reply of the server as text; empty while it does not answer."""
    with contextlib.suppress(redis.RedisError), client_of(server) as client:
        client.response_callbacks.clear()
        reply = client.execute_command(*command)
        return reply.decode() if isinstance(reply, bytes) else str(reply)
    return ""


@dataclass
class Watched:
    """A primary, its replica, and sentinels that fail over between them."""

    servers: list[RedisServer]
    ports: list[int]
    processes: list[Popen[bytes]]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return (
            f"redis+sentinel://:{PASSWORD_IN_URL}@{hosts}/{SERVICE}"
            f"?sentinel_password={SENTINEL_PASSWORD}"
        )

    def sentinel(self) -> Any:
        return redis.Redis(port=self.ports[0], password=SENTINEL_PASSWORD, decode_responses=True)

    def primary(self) -> RedisServer:
        """Whom the first sentinel takes for it."""
        with self.sentinel() as sentinel:
            port = sentinel.sentinel_masters()[SERVICE]["port"]
        return next(server for server in self.servers if server.port == port)

    def ready(self) -> bool:
        """Whether every sentinel knows the others and a replica that can take over."""
        with contextlib.suppress(redis.RedisError):
            for port in self.ports:
                with redis.Redis(port=port, password=SENTINEL_PASSWORD) as sentinel:
                    state = sentinel.sentinel_masters()[SERVICE]
                    replicas = sentinel.sentinel_slaves(SERVICE)
                if state["num-other-sentinels"] != len(self.ports) - 1 or not state["is_master"]:
                    return False
                if not any(not r["is_sdown"] and r["master-link-status"] == "ok" for r in replicas):
                    return False
            return "in-progress" not in tells(self.primary(), "INFO", "persistence")
        return False


@contextlib.contextmanager
def watched_servers(directory: Path, *options: str, sentinels: int = 3) -> Iterator[Watched]:
    """A primary with one replica, watched by sentinels; failover within about 2 s."""
    with contextlib.ExitStack() as stack:
        shared = ("--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0", *options)
        servers: list[RedisServer] = []
        for n in range(2):
            home = directory / f"server{n}"
            home.mkdir()
            servers.append(stack.enter_context(redis_server(home, *shared)))
        with client_of(servers[1]) as replica:
            replica.replicaof("127.0.0.1", servers[0].port)
        wait_until(
            lambda: "master_link_status:up" in tells(servers[1], "INFO", "replication"),
            "a replica in step",
        )
        ports, processes = [], []
        for n in range(sentinels):
            home = directory / f"sentinel{n}"
            home.mkdir()
            port = free_port()
            config = home / "sentinel.conf"
            config.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {home}\nrequirepass {SENTINEL_PASSWORD}\n"
                f"sentinel monitor {SERVICE} 127.0.0.1 {servers[0].port} {sentinels // 2 + 1}\n"
                f"sentinel auth-pass {SERVICE} {PASSWORD}\n"
                f"sentinel sentinel-pass {SENTINEL_PASSWORD}\n"
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
                f"sentinel failover-timeout {SERVICE} 3000\n"
            )
            process = spawn_bound(
                ["/usr/bin/env", "redis-server", str(config), "--sentinel"],
                home,
                home / "sentinel.log",
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            ports.append(port)
            processes.append(process)
        watched = Watched(servers, ports, processes)
        wait_until(watched.ready, "sentinels that can fail over")
        yield watched


@dataclass
class Cluster:
    """Three primaries, each with a third of the slots, and replicas of them."""

    servers: list[RedisServer]
    """The primaries, then the replicas in their order."""

    @property
    def url(self) -> str:
        """With the first two nodes alone: the third is found by them."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:2])
        return f"redis+cluster://:{PASSWORD_IN_URL}@{hosts}"

    def owner(self, name: str) -> RedisServer:
        """The server that has `name`'s slot."""
        slot = key_slot(name.encode())
        for server in self.servers:
            for first, last, primary, *_ in self._slots(server):
                if first <= slot <= last:
                    return next(s for s in self.servers if s.port == primary[1])
        raise LookupError(slot)

    def settled(self) -> bool:
        """Whether all nodes agree that every slot is served."""
        return all("cluster_state:ok" in tells(s, "CLUSTER", "INFO") for s in self.servers)

    @staticmethod
    def _slots(server: RedisServer) -> list[Any]:
        with contextlib.suppress(redis.RedisError), client_of(server) as client:
            client.response_callbacks.clear()
            return list(client.execute_command("CLUSTER", "SLOTS"))
        return []


@contextlib.contextmanager
def cluster(directory: Path, *options: str, replicas: bool = False) -> Iterator[Cluster]:
    """A cluster of three primaries, with a replica each if `replicas`."""
    with contextlib.ExitStack() as stack:
        servers: list[RedisServer] = []
        shared = (
            *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
            *("--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--masterauth", PASSWORD),
            *("--cluster-allow-replica-migration", "no", "--repl-diskless-sync-delay", "0"),
        )
        for n in range(6 if replicas else 3):
            home = directory / f"node{n}"
            home.mkdir()
            # The bus listens on the port plus 10,000, which must be one too.
            servers.append(stack.enter_context(redis_server(home, *shared, *options, below=55_000)))
        bounds = (0, 5461, 10923, 16384)
        for n, server in enumerate(servers):
            with client_of(server) as client:
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", n + 1)
                if n < 3:
                    first, last = bounds[n], bounds[n + 1] - 1
                    client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
                for other in servers[:n]:
                    client.execute_command("CLUSTER MEET", "127.0.0.1", other.port)
        made = Cluster(servers)
        wait_until(made.settled, "a cluster that serves every slot")
        for n, server in enumerate(servers[3:]):
            primary = tells(servers[n], "CLUSTER", "MYID")

            def known(server: RedisServer = server, primary: str = primary) -> bool:
                return tells(server, "CLUSTER", "REPLICATE", primary) in ("OK", "True")

            wait_until(known, "a replica of the primary")
        wait_until(
            lambda: (
                all("master_link_status:up" in tells(s, "INFO", "replication") for s in servers[3:])
                and made.settled()
            ),
            "replicas in step",
        )
        yield made


@contextlib.contextmanager
def bounded(servers: list[RedisServer], maxmemory: int) -> Iterator[None]:
    """The servers are empty and evict pages beyond `maxmemory` bytes each, while the block runs."""
    settings = {"maxmemory": str(maxmemory), "maxmemory-policy": "volatile-ttl"}
    former: list[tuple[RedisServer, dict[str, str]]] = []
    for server in servers:
        with client_of(server) as client:
            former.append((server, {name: client.config_get(name)[name] for name in settings}))
            if client.role()[0] in (b"master", "master"):
                client.flushall()
            client.config_set(*[word for item in settings.items() for word in item])
    try:
        yield
    finally:
        for server, values in former:
            with client_of(server) as client:
                client.config_set(*[word for item in values.items() for word in item])
