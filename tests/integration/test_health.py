"""The port for health: live, ready, and nothing else there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lexico_proto.errors import ConfigurationError, StoreUnavailable
from lexico_proto.v1 import dictionaries_pb2, dictionaries_pb2_grpc, reload_pb2, reload_pb2_grpc
from lexico_services import store_pings
from lexico_services.config import ListenConfig
from lexico_services.health import BEAT_S, HealthPort, health_port
from lexico_store import MemoryStore
from tests.support.authorities import Authority
from tests.support.health import NOT_SERVING, SERVING, health_of
from tests.support.servers import address_of, embedded_server
from tests.support.waiting import PATIENCE_S, wait_until

RELOAD = "lexico_proto.v1.Reload"
OFFLOAD = "lexico_proto.v1.Offload"
VERSIONS = "lexico_proto.v1.Versions"
ANYWHERE = "127.0.0.1:0"


@pytest.fixture
def port() -> Iterator[HealthPort]:
    with health_port(ANYWHERE, ("offload", "reload")) as port:
        yield port


def seen(port: HealthPort, *services: str) -> list[str]:
    assert port.address is not None
    return [health_of(port.address, service) for service in services]


def test_live_at_once_and_ready_part_by_part(port: HealthPort) -> None:
    names = ("", "live", "ready", OFFLOAD, RELOAD, VERSIONS)
    assert seen(port, *names) == [SERVING, SERVING, *[NOT_SERVING] * 4]
    port.turn("reload", True)
    assert seen(port, *names[2:]) == [NOT_SERVING, NOT_SERVING, SERVING, NOT_SERVING]
    port.turn("offload", True)
    assert seen(port, *names) == [SERVING] * 6
    port.store(False)
    assert seen(port, *names) == [SERVING, SERVING, *[NOT_SERVING] * 4]
    port.store(True)
    assert seen(port, *names) == [SERVING] * 6
    port.drain()
    port.store(True)
    port.turn("reload", True)
    assert seen(port, *names) == [SERVING, SERVING, *[NOT_SERVING] * 4]


def test_there_is_nothing_else(port: HealthPort) -> None:
    assert seen(port, "lexico_proto.v1.Nothing") == ["NOT_FOUND"]
    with grpc.insecure_channel(port.address) as channel:
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            list(reflected.ServerReflectionInfo(iter([ask]), timeout=PATIENCE_S))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.RpcError) as caught:
            reload_pb2_grpc.ReloadStub(channel).Match(reload_pb2.MatchRequest(), timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_whoever_watches_is_told(port: HealthPort) -> None:
    with grpc.insecure_channel(port.address) as channel:
        request = health_pb2.HealthCheckRequest(service=RELOAD)
        watching = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=PATIENCE_S)
        states = health_pb2.HealthCheckResponse
        assert next(watching).status == states.NOT_SERVING
        port.turn("reload", True)
        assert next(watching).status == states.SERVING
        port.drain()
        assert next(watching).status == states.NOT_SERVING


def test_a_process_that_is_stuck_is_not_live() -> None:
    now = [0.0]
    port = HealthPort(ANYWHERE, ("reload",), clock=lambda: now[0])
    port.start()
    try:
        now[0] = 10 * BEAT_S  # a start may take long
        assert seen(port, "live") == [SERVING]
        port.beat()
        now[0] += BEAT_S + 1
        assert seen(port, "", "live") == [NOT_SERVING, NOT_SERVING]
        port.beat()
        assert seen(port, "", "live") == [SERVING, SERVING]
        now[0] += BEAT_S + 1
        port.drain()  # which may take longer, and beats no more
        assert seen(port, "live") == [SERVING]
    finally:
        port.close()


def test_an_address_that_is_taken_or_is_none(port: HealthPort) -> None:
    with pytest.raises(ConfigurationError, match="is taken"), health_port(port.address, ()):
        pass
    for address in ("7413", "host:", ":7413", "host:70000", "::1:7413", "[]:1"):
        with pytest.raises(ConfigurationError, match="write HOST:PORT"):
            ListenConfig(health_address=address)
    assert ListenConfig(health_address="[::1]:0").health_address == "[::1]:0"


def test_a_store_is_gone_after_some_pings_and_back_with_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [True, False, False, True, False, False, False, False, True]

    class Store(MemoryStore):
        def ping(self) -> None:
            answer = answers.pop(0)
            if not answers:
                stopped.set()
            if not answer:
                raise StoreUnavailable("away")

    monkeypatch.setattr(store_pings, "PING_EVERY_S", 0.0)
    stopped, told = threading.Event(), list[bool]()
    store_pings.ping_until(stopped, Store(), told.append)
    assert told == [True, True, False, True]


def test_probes_of_a_server_behind_mutual_tls(tmp_path: Path) -> None:
    """SIGTERM while a call runs: not ready at once, live until the end."""
    authority = Authority()
    ca, (certificate, key) = authority.write(tmp_path), authority.issue().write(tmp_path, "server")
    node, file = authority.issue(), tmp_path / "address.json"
    line = [sys.executable, "-m", "lexico_services", "reload-server", "--port", "0"]
    line += ["--tls-certificate", f"{certificate}", "--tls-key", f"{key}"]
    line += ["--tls-client-ca", f"{ca}", "--drain-seconds", f"{PATIENCE_S}"]
    line += ["--health-address", ANYWHERE, "--address-file", f"{file}"]
    with embedded_server() as store:
        environment = {**os.environ, "LEXICO_STORE": store.url, "LEXICO_RELOAD__MAX_STREAMS": "1"}
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, env=environment)
        try:
            addresses = address_of(process, file)
            health = addresses["health"]
            for name in ("", "live", "ready", RELOAD, VERSIONS):
                assert health_of(health, name) == SERVING
            assert health_of(health, OFFLOAD) == "NOT_FOUND"
            assert health_of(addresses["reload"], "") == "UNAVAILABLE"  # it wants TLS
            secured = grpc.ssl_channel_credentials(authority.pem, node.key, node.chain)
            with grpc.secure_channel(addresses["reload"], secured) as channel:
                ending = threading.Event()

                def silent() -> Iterator[dictionaries_pb2.RegisterRequest]:
                    ending.wait(PATIENCE_S)
                    return
                    yield

                stub = dictionaries_pb2_grpc.DictionariesStub(channel)
                call = stub.Register.future(silent(), timeout=PATIENCE_S)

                def refused() -> bool:
                    request = dictionaries_pb2.FetchRequest(digest=bytes(32))
                    with pytest.raises(grpc.RpcError) as caught:
                        next(stub.Fetch(request, timeout=PATIENCE_S))
                    return bool(caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED)

                wait_until(refused, "the call has its slot")
                process.send_signal(signal.SIGTERM)
                wait_until(lambda: health_of(health, "ready") == NOT_SERVING, "not ready")
                assert health_of(health, RELOAD) == NOT_SERVING
                assert health_of(health, "live") == SERVING
                assert process.poll() is None
                ending.set()
                assert call.exception() is not None
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.wait()
