"""The whole service in its own processes: what it serves, what it survives, how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from examples.two_nodes.service import Service
from lexico_client import Client, PageOutcome, PutReport, Tls, tracing
from lexico_client import request as lexico_request
from lexico_codec.sets.builtin import load_builtin
from lexico_proto import errors
from lexico_proto import tracing as tracing_api
from lexico_services.cli import main
from tests.support.authorities import Authority
from tests.support.client_fixtures import PATIENT
from tests.support.health import NOT_SERVING, SERVING, health_of
from tests.support.held_cache import Cache, spec_of
from tests.support.otlp import Collector, collecting
from tests.support.scrape import sample, samples_of, text_of
from tests.support.servers import address_of, redis_server
from tests.support.waiting import PATIENCE_S, wait_until

SERVICES = ("lexico_proto.v1.Offload", "lexico_proto.v1.Reload", "lexico_proto.v1.Versions")
SLOW_START = ("--start-seconds", f"{PATIENCE_S}")
METRICS = ("offload-metrics", "reload-metrics", "service-metrics")
SLOW_END = ("--drain-seconds", f"{PATIENCE_S}")


def processes(parent: int, name: str = "") -> list[psutil.Process]:
    """Descendants, those whose title holds `name`."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if name in " ".join(process.cmdline()[:1]) or name in process.name():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def encoder_of(parent: int) -> psutil.Process:
    title = "ray::ServeReplica:lexico:Encoder"
    return wait_until(lambda: processes(parent, title), "an encoder")[0]


class Offload(threading.Thread):
    """An offload under way."""

    def __init__(self, client: Client, cache: Cache) -> None:
        super().__init__(daemon=True)  # or one that hangs would hold the whole run
        self._client = client
        self._cache = cache
        self._report: PutReport | None = None
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._report = self._client.offload(
                self._cache.spec, self._cache.tokens, self._cache.source
            )
        except Exception as error:  # noqa: BLE001 - raised again where it is looked for
            self._error = error

    def wait_until_stored(self) -> None:
        """Until a page is in the store while the offload runs."""

        def stored() -> int:
            assert self.is_alive(), f"the offload has ended: {self._error or self._report}"
            return self.stored()

        wait_until(stored, "a page in the store")

    def stored(self) -> int:
        """Leading pages that are in the store. A server too busy to say so within its two seconds
        is asked again."""
        answers: list[int] = []

        def answered() -> bool:
            with suppress(errors.DeadlineExpired):
                answers.append(self._client.match(self._cache.spec, self._cache.tokens).pages)
            return bool(answers)

        wait_until(answered, "an answer to a Match")
        return answers[0]

    def report(self) -> PutReport:
        """What the offload ended with."""
        self._cache.last.set()
        self.join(PATIENCE_S)
        assert not self.is_alive(), "the offload hangs"
        if self._error is not None:
            raise self._error
        assert self._report is not None
        return self._report


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def service(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With health, metrics, logs as JSON, and spans of what is sampled by its caller."""
    config = tmp_path_factory.mktemp("settings") / "lexico.toml"
    config.write_text(
        '[metrics]\naddress = "127.0.0.1:0"\n[log]\nlevel = "info"\nformat = "json"\n'
        "[encoder]\nerror_every = 1\n[tracing]\nsample = 0.0\n"
    )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        options = ("--health-address", "127.0.0.1:0", "--config", str(config))
        with Service(*options, *SLOW_START, *SLOW_END) as running:
            yield running


@pytest.fixture
def client(service: Service, tmp_path: Path) -> Iterator[Client]:
    with Client(
        offload=service.offload,
        reload=service.reload,
        dictionaries_dir=tmp_path,
        timeouts=PATIENT,
    ) as made:
        yield made


@pytest.mark.parametrize(("codec", "most"), [("raw", 0.0), ("lexico", 0.6)])
def test_what_is_offloaded_comes_back(client: Client, codec: str, most: float) -> None:
    cache = Cache(spec_of(codec), pages=2, seed=1)
    report = client.offload(cache.spec, cache.tokens, cache.source)
    assert report.bytes_sent == 2 * cache.spec.page_bytes
    again = client.offload(cache.spec, cache.tokens, cache.source)
    assert again.bytes_sent == 0
    loaded = client.load(cache.spec, cache.tokens, cache.target)
    assert (loaded.pages, loaded.reason) == (2, None)
    assert max(cache.error(0), cache.error(1)) <= most


def test_an_unknown_prefix_is_a_miss(client: Client) -> None:
    cache = Cache(spec_of("raw"), pages=1, seed=2)
    loaded = client.load(cache.spec, cache.tokens, cache.target)
    assert (loaded.tokens, loaded.reason) == (0, None)


def test_shipped_sets_are_there_from_the_start(client: Client) -> None:
    def shared() -> set[bytes]:
        return {entry.digest for entry in client.list_dictionaries() if entry.shared}

    # The address is announced after two seconds, also where the first try takes longer.
    wait_until(lambda: load_builtin("smollm2-135m").digest in shared(), "the shipped set", shared)


def test_every_process_shows_its_metrics(service: Service, client: Client) -> None:
    cache = Cache(spec_of("lexico"), pages=1, seed=3)
    client.offload(cache.spec, cache.tokens, cache.source)
    client.load(cache.spec, cache.tokens, cache.target)
    parts = ("ingress", "ray", "reload-server", "store")

    def all_up() -> bool:
        own = samples_of(text_of(service.addresses["service-metrics"]))
        return all(sample(own, "lexico_part_up", part=part) == 1 for part in parts)

    wait_until(all_up, "every part is there")
    shown = {name: samples_of(text_of(service.addresses[name])) for name in METRICS}
    named = {
        part: dict(labels)["part"]
        for part, samples in shown.items()
        for name, labels in samples
        if name == "lexico_build_info"
    }
    assert named == dict(zip(METRICS, ("ingress", "reload-server", "service"), strict=True))
    ingress, reload, _ = (shown[name] for name in METRICS)
    lexico = {"codec": "lexico"}
    assert sample(ingress, "lexico_encode_seconds_count", **lexico) >= 1
    # Counted in the encoder's process.
    assert sample(ingress, "lexico_leases_total", outcome="taken") >= 1
    measured = sample(ingress, "lexico_relative_error_ratio_count", **lexico)
    assert measured >= 1
    assert 0 < sample(ingress, "lexico_relative_error_ratio_sum", **lexico) / measured < 0.6
    assert sample(reload, "lexico_hit_tokens_total", tenant="default", **lexico) >= 64
    assert sample(reload, "lexico_store_up") == 1
    assert sample(reload, "lexico_store_bytes") > 0


def test_status_of_every_server(
    service: Service, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Cache(spec_of("lexico"), pages=1, seed=7)
    client.offload(cache.spec, cache.tokens, cache.source)
    command = ["status", "--json", "--interval", "0", "--timeout", str(PATIENCE_S)]
    for name in ("reload", "offload"):
        command += [f"--{name}", service.addresses[name]]
    assert main(command) == 0
    reload, offload = json.loads(capsys.readouterr().out)["servers"]
    assert offload["ingress"]["encoders"] == 1
    assert offload["ingress"]["pages_stored"] >= 1
    assert reload["reload"]["store"]["numbers"]["used_bytes"] > 0


def test_one_trace_over_all_processes(
    service: Service, client: Client, collector: Collector
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra otel")
    cache = Cache(spec_of("raw"), pages=2, seed=7)
    assert tracing.start(collector.endpoint, sample=1.0)
    try:
        with tracing_api.span("request") as request:
            client.offload(cache.spec, cache.tokens, cache.source)
            assert client.load(cache.spec, cache.tokens, cache.target).pages == 2
    finally:
        tracing.stop()
    trace = bytes.fromhex(request.trace[0][1][3:35])
    expected = {
        *("request", "lexico.client.offload", "lexico.client.load"),
        *("lexico.match", "lexico.put", "lexico.get", "lexico.place", "lexico.encoder"),
        *("lexico.encode", "lexico.store.match", "lexico.store.commit", "lexico.store.read"),
    }

    def arrived() -> bool:
        names = collector.names(trace)
        return set(names) == expected and names.count("lexico.encode") == 2

    wait_until(arrived, "every span of it", lambda: collector.names(trace))
    assert collector.services == {
        *("lexico-client", "lexico-ingress", "lexico-encoder", "lexico-reload-server")
    }
    assert {span.trace_id for span in collector.spans} == {trace}  # nothing else is sampled


def test_logs_are_documents(service: Service, client: Client) -> None:
    cache = Cache(spec_of("raw"), pages=1, seed=8)
    with lexico_request("of-this-test"):
        client.load(cache.spec, cache.tokens, cache.target)

    def told() -> list[dict[str, object]]:
        lines = service.log.read_text().splitlines()
        records = [json.loads(line) for line in lines if line.startswith('{"')]
        return [each for each in records if each.get("request") == "of-this-test"]

    (match,) = wait_until(told, "the line of the Match", service.log.read_text)
    assert (match["call"], match["level"]) == ("match", "info")


def test_nothing_listens_beyond_loopback_without_a_token(service: Service) -> None:
    replicas = 0
    for pid in (service.process.pid, *(p.pid for p in processes(service.process.pid))):
        try:
            process = psutil.Process(pid)
            connections = process.net_connections(kind="inet")
        except psutil.NoSuchProcess:  # one that Ray had to spare
            continue
        for connection in connections:
            if connection.status != psutil.CONN_LISTEN:
                continue
            host, port = connection.laddr
            if host.removeprefix("::ffff:") in ("127.0.0.1", "::1"):
                continue
            # Serve's server between replicas listens everywhere, but wants Ray's token.
            assert process.cmdline()[0].startswith("ray::ServeReplica"), (process.cmdline(), host)
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                unary: Any = channel.unary_unary
                call = unary("/ray.serve.ASGIService/HandleRequest")
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"", timeout=PATIENCE_S)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            replicas += 1
    assert replicas


def test_an_encoder_killed_in_the_middle_of_a_page_costs_only_time(
    service: Service, client: Client
) -> None:
    victim = encoder_of(service.process.pid)
    for seed in count(30):
        cache = Cache(spec_of("lexico", 256), pages=4, seed=seed, hold=True)
        offload = Offload(client, cache)
        offload.wait_until_stored()
        victim.suspend()
        if offload.stored() < 3:  # it stands in one of the two that it has before the last
            break
        victim.resume()  # the machine let it run on before we could: once more
        offload.report()
    victim.kill()
    report = offload.report()
    assert report.tokens == 4 * 256
    assert report.pages[-1] is PageOutcome.STORED
    assert encoder_of(service.process.pid).pid != victim.pid
    loaded = client.load(cache.spec, cache.tokens, cache.target)
    assert (loaded.pages, loaded.reason) == (4, None)
    assert max(cache.error(page) for page in range(4)) < 0.6


def test_sigterm_lets_a_put_end_and_leaves_no_process(service: Service, client: Client) -> None:
    """The last of the tests of this service, which is gone then."""
    family = processes(service.process.pid)
    offload = Offload(client, Cache(spec_of("lexico", 128), pages=4, seed=4, hold=True))
    offload.wait_until_stored()
    for name in ("live", "ready", *SERVICES):
        assert health_of(service.health, name) == SERVING
    service.process.send_signal(signal.SIGTERM)
    wait_until(lambda: health_of(service.health, "ready") == NOT_SERVING, "not ready")
    assert {health_of(service.health, name) for name in SERVICES} == {NOT_SERVING}
    assert health_of(service.health, "live") == SERVING
    assert len(offload.report().pages) == 4
    assert service.process.wait(PATIENCE_S) == 0
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    assert not alive, [process.cmdline() for process in alive]


@contextmanager
def started(
    command: str, folder: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """One part of the service in a process of its own, and its address."""
    file, printed = folder / f"{command}.json", folder / f"{command}.out"
    line = [sys.executable, "-m", "lexico_services", command, "--port", "0", "--json", *options]
    with printed.open("wb") as out:
        process = subprocess.Popen(
            [*line, "--address-file", str(file)], stdout=out, stderr=subprocess.DEVNULL
        )
    try:
        addresses = address_of(process, file)
        yield process, next(iter(addresses.values()))
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        (told,) = printed.read_text().splitlines()
        assert json.loads(told) == addresses
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_the_parts_run_apart_and_survive_the_loss_of_redis(tmp_path: Path) -> None:
    """Behind mutual TLS and tokens, as they would across machines."""
    authority, token = Authority(), "token-of-tenant-one"
    (tmp_path / "tokens").write_text(f"one:{token}\n")
    ca, (certificate, key) = authority.write(tmp_path), authority.issue().write(tmp_path, "server")
    tls = Tls(ca, *authority.issue().write(tmp_path, "node"))
    doors = ["--tls-certificate", f"{certificate}", "--tls-key", f"{key}"]
    doors += ["--tls-client-ca", f"{ca}", "--token-file", f"{tmp_path / 'tokens'}"]
    with redis_server(tmp_path) as redis:
        options = ("--store", redis.url, *doors)
        with (
            started("reload-server", tmp_path, *options) as (_, reload),
            started("offload-server", tmp_path, *options, *SLOW_START) as (_, offload),
            Client(
                offload=offload,
                reload=reload,
                token=token,
                dictionaries_dir=tmp_path,
                timeouts=PATIENT,
                tls=tls,
            ) as client,
        ):
            kept = Cache(spec_of("raw"), pages=1, seed=5)
            client.offload(kept.spec, kept.tokens, kept.source)
            assert client.load(kept.spec, kept.tokens, kept.target).pages == 1

            lost = Cache(spec_of("lexico", 256), pages=4, seed=6, hold=True)
            sending = Offload(client, lost)
            sending.wait_until_stored()
            psutil.Process(redis.pid).kill()
            with pytest.raises(errors.StoreUnavailable):
                sending.report()
            miss = client.load(kept.spec, kept.tokens, kept.target)
            assert miss.tokens == 0
            assert isinstance(miss.reason, errors.StoreUnavailable)
