"""A real Prometheus and a real Alertmanager on loopback, as Debian has them."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import yaml

from lexico_store.child import spawn_bound
from tests.support.servers import free_port
from tests.support.waiting import PATIENCE_S, wait_until

PROMETHEUS: Final = "prometheus"
ALERTMANAGER: Final = "prometheus-alertmanager"
MONITORING: Final = os.environ.get("LEXICO_TEST_MONITORING") == "1"
"""Whether tests are wanted that take a minute: `make monitoring-check` says so."""
STEP_S: Final = 1
"""From one scrape, and from one look at the rules, to the next."""


def lacking() -> list[str]:
    """Programs that are not on PATH."""
    return [name for name in (PROMETHEUS, ALERTMANAGER) if shutil.which(name) is None]


class Hook:
    """Takes what Alertmanager delivers."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        """As they were delivered."""
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers["content-length"]))
                hook.alerts += json.loads(text)["alerts"]
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def names(self) -> set[str]:
        """Of alerts that were delivered as firing."""
        return {each["labels"]["alertname"] for each in self.alerts if each["status"] == "firing"}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE_S)
        self._server.server_close()


class Prometheus:
    """What it knows."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, way: str, **asked: str) -> Any:
        """`data` of an answer of its API."""
        url = f"{self.url}/api/v1/{way}?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def now(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Labels and number of each series, as of now."""
        found = self.ask("query", query=expr)
        assert found["resultType"] == "vector", found
        return [(each["metric"], float(each["value"][1])) for each in found["result"]]

    def of_late(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Labels and each number of each series, of the last minute."""
        ((_, end),) = self.now("vector(time())")
        asked = {"start": f"{end - 60}", "end": f"{end}", "step": "5"}
        found = self.ask("query_range", query=expr, **asked)
        return [
            (each["metric"], float(value))
            for each in found["result"]
            for _, value in each["values"]
        ]

    def firing(self) -> set[tuple[str, str]]:
        """Name and severity of alerts that fire."""
        found = self.now('ALERTS{alertstate="firing"}')
        return {(labels["alertname"], labels["severity"]) for labels, _ in found}


def finite(found: list[tuple[dict[str, str], float]]) -> list[float]:
    """Numbers that can be drawn."""
    return [value for _, value in found if math.isfinite(value)]


@contextmanager
def alertmanager(folder: Path, hook: Hook) -> Iterator[str]:
    """Its HOST:PORT; it delivers to the hook at once."""
    route = {"receiver": "hook", "group_by": ["..."], "group_wait": "0s", "group_interval": "1s"}
    receiver = {"name": "hook", "webhook_configs": [{"url": hook.url}]}
    file = folder / "alertmanager.yaml"
    file.write_text(yaml.safe_dump({"route": route, "receivers": [receiver]}))
    address = f"127.0.0.1:{free_port()}"
    command = [
        *(ALERTMANAGER, f"--config.file={file}", f"--storage.path={folder / 'alertmanager'}"),
        *(f"--web.listen-address={address}", "--cluster.listen-address="),
    ]
    with _running(command, folder, address):
        yield address


@contextmanager
def prometheus(
    folder: Path,
    rules: Mapping[str, Any],
    targets: Mapping[str, tuple[str, Mapping[str, str]]],
    alerts_to: str,
) -> Iterator[Prometheus]:
    """One that looks every second.

    Args:
        folder: of its files.
        rules: a file of rules.
        targets: job → HOST:PORT and labels of its one target.
        alerts_to: HOST:PORT of an Alertmanager.
    """
    (folder / "rules.yaml").write_text(yaml.safe_dump(dict(rules)))
    scraped = [
        {"job_name": job, "static_configs": [{"targets": [target], "labels": dict(labels)}]}
        for job, (target, labels) in targets.items()
    ]
    config = {
        "global": {"scrape_interval": f"{STEP_S}s", "evaluation_interval": f"{STEP_S}s"},
        "rule_files": [str(folder / "rules.yaml")],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alerts_to]}]}]},
        "scrape_configs": scraped,
    }
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        *(PROMETHEUS, f"--config.file={file}", f"--storage.tsdb.path={folder / 'prometheus'}"),
        f"--web.listen-address={address}",
    ]
    with _running(command, folder, address):
        yield Prometheus(f"http://{address}")


@contextmanager
def _running(command: list[str], folder: Path, address: str) -> Iterator[None]:
    log = folder / f"{command[0]}.log"
    process = spawn_bound(command, folder, log)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError), urllib.request.urlopen(f"http://{address}/-/ready") as answer:
            return bool(answer.status == 200)
        return False

    try:
        wait_until(ready, f"{command[0]} is ready", log.read_text)
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
