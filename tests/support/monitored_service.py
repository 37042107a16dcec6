"""`lexico serve` under a real Prometheus, with two tenants whose nodes offload and load."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from prometheus_client import CollectorRegistry, start_http_server

from examples.two_nodes.service import Service
from k8s.monitoring.files import rules
from lexico_client import Client, Tls
from lexico_client import metrics as client_metrics
from lexico_client.engines._counts import Counts
from lexico_client.engines.vllm._log import LOG
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import Metrics
from tests.support.client_fixtures import PAGE_TOKENS, PATIENT, small_dictionary, small_spec
from tests.support.prometheus import Hook, Prometheus, alertmanager, prometheus
from tests.support.servers import RedisServer, redis_server
from tests.support.tls import certificate
from tests.support.waiting import PATIENCE_S

TENANTS: Final = {"red": "token-of-tenant-red", "blue": "token-of-tenant-blue"}
PAGES: Final = 3
STORE: Final = (
    *("--maxmemory", "256mb", "--maxmemory-policy", "volatile-ttl"),
    *("--maxmemory-samples", "64"),
)
SETTINGS: Final = """
[listen]
token_file = "{tokens}"
[tls]
certificate = "{certificate}"
key = "{key}"
[offload]
max_inflight_bytes = "96 MiB"
[ray]
object_store_bytes = "256 MiB"
[encoder]
error_every = 1
[store]
url = "{store}"
[metrics]
address = "127.0.0.1:0"
"""


@dataclass
class Monitored:
    """All of it."""

    service: Service
    settings: Path
    store: RedisServer
    store_url: str
    """With a user's name, without which `redis-cli` gives an empty one."""
    prometheus: Prometheus
    hook: Hook
    node: str
    """HOST:PORT of a node's metrics."""
    ca: Path
    client: Callable[[str], Client]
    """Token → a client, which the caller closes."""
    traffic: Traffic


@dataclass
class Traffic:
    """Nodes of both tenants that offload new prompts, and load them and others."""

    clients: Mapping[str, Client]
    engine: Counts
    """As the connector of an engine counts, which none is here."""
    rounds: int = 0
    failure: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        made = small_dictionary()
        specs = (small_spec(), small_spec("lexico", dictionary=made.digest))
        coded = []  # models are counted for as long as they live
        try:
            for client in self.clients.values():
                client.register_dictionary(made)
                coded.append(client.coding(small_spec("lossless"), "balanced"))
            while not self._over.is_set():
                for spec in specs:
                    for client in self.clients.values():
                        self._prompt(client, spec)
                self.rounds += 1
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.failure.append(error)

    def _prompt(self, client: Client, spec: CacheSpec) -> None:
        tokens = PAGES * PAGE_TOKENS
        ids = list(range(self.rounds * tokens, (self.rounds + 1) * tokens))
        cache = [torch.randn(spec.group_shape(group)).half() for group in range(spec.groups)]
        room = [torch.empty_like(group) for group in cache]
        for expected in (0, PAGES):
            loaded = client.load(spec, ids, lambda _: lambda page, group: room[group])
            if loaded.pages != expected:
                raise AssertionError(f"{loaded} in place of {expected} pages")
            if not expected:
                client.offload(spec, ids, lambda page, group: cache[group])
        self.engine.request("hit")
        for what in ("asked", "promised", "loaded", "lost"):
            self.engine.tokens(what, tokens)
        self.engine.pages("sent", PAGES)
        self.engine.staged(0)

    def end(self) -> None:
        """Has it end, and waits for that."""
        self._over.set()
        self._thread.join(PATIENCE_S)


def eager(made: dict[str, Any]) -> dict[str, Any]:
    """Rules that fire as soon as they are true: nothing here lasts for minutes."""
    for group in made["groups"]:
        for rule in group["rules"]:
            rule["for"] = "0s"
    return made


@contextmanager
def monitored(folder: Path) -> Iterator[Monitored]:
    """Everything, on loopback, with its files in a folder."""
    cert, key = certificate(folder, "server")
    tokens, settings = folder / "tokens", folder / "lexico.toml"
    lines = [f"{tenant}:{token}:offload,reload,admin" for tenant, token in TENANTS.items()]
    tokens.write_text("\n".join(lines) + "\n")
    metrics, registry = Metrics(), CollectorRegistry()
    client_metrics.register(registry, metrics)
    with ExitStack() as stack:
        store = stack.enter_context(redis_server(folder, *STORE))
        url = store.url.replace("redis://:", "redis://default:")
        settings.write_text(SETTINGS.format(tokens=tokens, certificate=cert, key=key, store=url))
        server, thread = start_http_server(0, "127.0.0.1", registry)
        stack.callback(thread.join, PATIENCE_S)
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        service = stack.enter_context(
            Service("--config", str(settings), "--start-seconds", f"{PATIENCE_S}")
        )

        def client(token: str) -> Client:
            return Client(
                offload=service.offload,
                reload=service.reload,
                token=token,
                tls=Tls(ca=cert),
                dictionaries_dir=folder / "sets",
                timeouts=PATIENT,
                metrics=metrics,
            )

        hook = Hook()
        stack.callback(hook.close)
        node = f"127.0.0.1:{server.server_port}"
        found = service.addresses
        targets = {
            f"lexico/lexico-{part}": (
                found[f"{part}-metrics"],
                {"namespace": "lexico", "pod": f"lexico-{part}-0"},
            )
            for part in ("offload", "reload", "service")
        }
        targets["engines"] = (node, {"namespace": "engines", "pod": "engine-0"})
        alerts_to = stack.enter_context(alertmanager(folder, hook))
        watcher = stack.enter_context(prometheus(folder, eager(rules()), targets, alerts_to))
        clients = {tenant: client(token) for tenant, token in TENANTS.items()}
        for each in clients.values():
            stack.callback(each.close)
        traffic = Traffic(clients, Counts(LOG, metrics))
        stack.callback(traffic.end)
        yield Monitored(service, settings, store, url, watcher, hook, node, cert, client, traffic)
