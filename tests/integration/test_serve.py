"""The whole service in its own processes: what it serves, what it survives, how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
import torch

from bench.service import Service
from lexico_client import Client, PageOutcome, PutReport
from lexico_codec.geometry import Geometry
from lexico_codec.sets.builtin import load_builtin
from lexico_codec.spec import CacheSpec, make_spec
from lexico_proto import errors
from tests.support.servers import redis_server

SMOLLM2 = Geometry(30, 3, 64, "float16", load_builtin("smollm2-135m").rope)


def spec_of(codec: str, page_tokens: int = 64) -> CacheSpec:
    digest = load_builtin("smollm2-135m").digest if codec == "lexico" else b""
    return make_spec(
        weights=b"w" * 32,
        geometry=SMOLLM2,
        codec=codec,
        dictionary=digest,
        page_tokens=page_tokens,
    )


class Cache:
    """A prompt with a random cache, and memory to load it into."""

    def __init__(self, spec: CacheSpec, pages: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.spec = spec
        self.tokens = [seed * 1000 + i for i in range(pages * spec.page_tokens)]
        self.made = [self._page(generator) for _ in range(pages)]
        self.loaded = [[torch.full_like(g, float("nan")) for g in page] for page in self.made]

    def _page(self, generator: torch.Generator) -> list[torch.Tensor]:
        shapes = [self.spec.group_shape(group) for group in range(self.spec.groups)]
        return [torch.randn(shape, generator=generator).half() for shape in shapes]

    def source(self, page: int, group: int) -> torch.Tensor:
        return self.made[page][group]

    def target(self, pages: int) -> Iterator[torch.Tensor]:
        return lambda page, group: self.loaded[page][group]

    def error(self, page: int) -> float:
        """Relative error of what was loaded of a page."""
        made = torch.cat([g.flatten() for g in self.made[page]]).float()
        loaded = torch.cat([g.flatten() for g in self.loaded[page]]).float()
        return float((made - loaded).norm() / made.norm())


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
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = processes(parent, "ray::ServeReplica:lexico:Encoder")
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no encoder is running")


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
                self._cache.spec, self._cache.tokens, self._cache.source, timeout=120
            )
        except Exception as error:  # noqa: BLE001 - raised again where it is looked for
            self._error = error

    def wait_until(self, ready: Callable[[], object]) -> None:
        """Until something is so while the offload runs."""
        deadline = time.monotonic() + 60
        while not ready():
            assert self.is_alive(), f"the offload has ended: {self._error or self._report}"
            assert time.monotonic() < deadline, "it did not come to pass within a minute"
            time.sleep(0.02)

    def stored(self) -> int:
        """Leading pages that are in the store."""
        return self._client.match(self._cache.spec, self._cache.tokens).pages

    def report(self) -> PutReport:
        """What the offload ended with."""
        self.join(130)
        assert not self.is_alive(), "the offload hangs"
        if self._error is not None:
            raise self._error
        assert self._report is not None
        return self._report


def computes(process: psutil.Process) -> bool:
    """Whether a process spends its time on a processor: an encoder does so inside a page alone."""
    before = process.cpu_times().user
    time.sleep(0.1)
    return process.cpu_times().user - before > 0.03


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with Service("--drain-seconds", "10") as running:
        yield running


@pytest.fixture
def client(service: Service, tmp_path: Path) -> Iterator[Client]:
    with Client(offload=service.offload, reload=service.reload, dictionaries_dir=tmp_path) as made:
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
    shared = {entry.digest for entry in client.list_dictionaries() if entry.shared}
    assert load_builtin("smollm2-135m").digest in shared


def test_nothing_listens_beyond_loopback_without_a_token(service: Service) -> None:
    pids = [service.process, *processes(service.process.pid)]
    replicas = 0
    for process in (psutil.Process(p.pid) for p in pids):
        for connection in process.net_connections(kind="inet"):
            if connection.status != psutil.CONN_LISTEN:
                continue
            host, port = connection.laddr
            if host.removeprefix("::ffff:") in ("127.0.0.1", "::1"):
                continue
            # Serve's server between replicas listens everywhere, but wants Ray's token.
            assert process.cmdline()[0].startswith("ray::ServeReplica"), (process.cmdline(), host)
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"", timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            replicas += 1
    assert replicas


def test_an_encoder_killed_in_the_middle_of_a_page_costs_only_time(
    service: Service, client: Client
) -> None:
    cache = Cache(spec_of("lexico", 256), pages=4, seed=3)
    offload = Offload(client, cache)
    offload.wait_until(offload.stored)
    victim = encoder_of(service.process.pid)
    offload.wait_until(lambda: computes(victim))
    victim.kill()
    assert offload.stored() < 4
    report = offload.report()
    assert report.tokens == 4 * 256
    assert report.pages[-1] is PageOutcome.STORED
    assert encoder_of(service.process.pid).pid != victim.pid
    loaded = client.load(cache.spec, cache.tokens, cache.target)
    assert (loaded.pages, loaded.reason) == (4, None)
    assert max(cache.error(page) for page in range(4)) < 0.6


def test_sigterm_lets_a_put_end_and_leaves_no_process(tmp_path: Path) -> None:
    with (
        Service("--drain-seconds", "10") as own,
        Client(offload=own.offload, reload=own.reload, dictionaries_dir=tmp_path) as client,
    ):
        family = processes(own.process.pid)
        offload = Offload(client, Cache(spec_of("lexico", 128), pages=3, seed=4))
        offload.wait_until(offload.stored)
        own.process.send_signal(signal.SIGTERM)
        assert len(offload.report().pages) == 3
        assert own.process.wait(60) == 0
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive, [process.cmdline() for process in alive]


@contextmanager
def started(
    command: str, folder: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """One part of the service in a process of its own, and its address."""
    file = folder / f"{command}.json"
    line = [sys.executable, "-m", "lexico_services", command, "--port", "0", *options]
    process = subprocess.Popen(
        [*line, "--address-file", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 90
        while not file.exists():
            assert process.poll() is None, f"{command} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{command} does not start"
            time.sleep(0.05)
        yield process, next(iter(json.loads(file.read_text()).values()))
        process.terminate()
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_the_parts_run_apart_and_survive_the_loss_of_redis(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        store = ("--store", redis.url)
        with (
            started("reload-server", tmp_path, *store) as (_, reload),
            started("offload-server", tmp_path, *store) as (_, offload),
            Client(offload=offload, reload=reload, dictionaries_dir=tmp_path) as client,
        ):
            kept = Cache(spec_of("raw"), pages=1, seed=5)
            client.offload(kept.spec, kept.tokens, kept.source)
            assert client.load(kept.spec, kept.tokens, kept.target).pages == 1

            lost = Cache(spec_of("lexico", 256), pages=3, seed=6)
            sending = Offload(client, lost)
            sending.wait_until(sending.stored)
            psutil.Process(redis.pid).kill()
            with pytest.raises(errors.StoreUnavailable):
                sending.report()
            begun = time.monotonic()
            miss = client.load(kept.spec, kept.tokens, kept.target)
            assert miss.tokens == 0
            assert isinstance(miss.reason, errors.StoreUnavailable)
            assert time.monotonic() - begun < 10
