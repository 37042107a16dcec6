"""What is checked before and while the service starts, and what is watched afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import services

from lexico_proto import errors
from lexico_services import serve
from lexico_services.cli import main
from lexico_services.config import ListenConfig, OffloadConfig
from lexico_services.offload.server import (
    PROBE_EVERY_S,
    RECOVERY_S,
    OffloadServer,
    placed,
    wait_until_running,
)
from lexico_services.process import stop_event, take_port
from lexico_worker import ray_patience, ray_runtime
from lexico_worker.config import EncoderConfig
from lexico_worker.ray_runtime import RayConfig, RayRuntime
from tests.support.waiting import PATIENCE_S

STORE = "redis://:secret@127.0.0.1"
CPU_NODE, GPU_NODE = {"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("asked", "nodes", "got"),
    [
        (None, [CPU_NODE], 0.0),
        (None, [GPU_NODE], 1.0),
        (None, [CPU_NODE, GPU_NODE], 1.0),
        (0.0, [GPU_NODE], 0.0),
        (0.25, [GPU_NODE], 0.25),
        (2.0, [GPU_NODE], 2.0),
    ],
)
def test_encoders_take_a_gpu_where_there_is_one(
    asked: float | None, nodes: list[dict[str, float]], got: float
) -> None:
    assert placed(EncoderConfig(STORE, num_gpus=asked), nodes, 0.1).num_gpus == got


@pytest.mark.parametrize(
    ("options", "nodes", "named"),
    [
        ({"num_gpus": 1.0}, [CPU_NODE], "GPU"),
        ({"min_replicas": 3, "max_replicas": 3}, [GPU_NODE], "--encoder-gpus"),
        ({"num_cpus": 4.0}, [CPU_NODE], "CPU"),
        ({"num_cpus": 5.0}, [CPU_NODE, CPU_NODE], "--encoder-cpus"),
        ({"num_gpus": 3.0}, [GPU_NODE, GPU_NODE], "GPU"),
    ],
)
def test_what_ray_lacks_is_named(
    options: dict[str, Any], nodes: list[dict[str, float]], named: str
) -> None:
    with pytest.raises(errors.ConfigurationError, match=named):
        placed(EncoderConfig(STORE, **options), nodes, 0.1)


@pytest.mark.parametrize("gpus", [-1.0, 1.5, float("nan"), float("inf")])
def test_gpu_shares_that_ray_does_not_know(gpus: float) -> None:
    with pytest.raises(errors.ConfigurationError, match="num_gpus"):
        EncoderConfig(STORE, num_gpus=gpus)


def test_the_password_of_the_store_is_not_shown() -> None:
    assert "secret" not in repr(EncoderConfig(STORE))


@pytest.mark.parametrize("start", [0.0, -1.0, float("nan"), float("inf")])
def test_start_times_that_cannot_be(start: float) -> None:
    with pytest.raises(errors.ConfigurationError, match="start time"):
        ListenConfig(start_s=start)


@pytest.mark.parametrize("drain", [-1.0, float("nan"), float("inf")])
def test_drain_times_that_cannot_be(drain: float) -> None:
    with pytest.raises(errors.ConfigurationError, match="drain"):
        ListenConfig(drain_s=drain)


def application(status: str, message: str = "", encoder: str = "") -> Any:
    return SimpleNamespace(
        status=status, message=message, deployments={"Encoder": SimpleNamespace(message=encoder)}
    )


def test_a_deployment_is_waited_for() -> None:
    states = iter([None, application("DEPLOYING"), application("RUNNING")])
    assert wait_until_running(lambda: next(states), PATIENCE_S, threading.Event())


def test_a_deployment_that_fails_or_hangs_says_why() -> None:
    failed = application("DEPLOY_FAILED", "no luck")
    with pytest.raises(errors.ConfigurationError, match="no luck"):
        wait_until_running(lambda: failed, PATIENCE_S, threading.Event())
    hanging = application("DEPLOYING", encoder="waits for resources")
    with pytest.raises(errors.ConfigurationError, match="Encoder: waits for resources"):
        wait_until_running(lambda: hanging, 0.2, threading.Event())


def test_a_stop_ends_the_wait() -> None:
    stopped = threading.Event()
    stopped.set()
    assert not wait_until_running(lambda: None, PATIENCE_S, stopped)


def test_ports_are_tried_before_anything_is_started() -> None:
    port = take_port("127.0.0.1", 0)
    assert take_port("127.0.0.1", port) == port
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(errors.ConfigurationError, match=f"port {port} is taken"):
            take_port("127.0.0.1", port)
    with pytest.raises(errors.ConfigurationError, match=r"192\.0\.2\.1"):
        take_port("192.0.2.1", 0)


@pytest.mark.parametrize("option", ["--offload-port", "--reload-port"])
def test_a_taken_port_is_said_at_once(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        ports = {"--offload-port": "0", "--reload-port": "0", option: port}
        assert main(["serve", *(word for pair in ports.items() for word in pair)]) == 2
    assert f"port {port} is taken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--offload-port", "7", "--reload-port", "7"], "twice"),
        (["reload-server", "--store", "memory://"], "memory://"),
        (["serve", "--drain-seconds", "nan"], "drain"),
        (["serve", "--start-seconds", "0"], "start time"),
    ],
)
def test_settings_that_cannot_work(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_log_levels(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--log-level", "foo"])
    assert caught.value.code == 2
    assert "choose from" in capsys.readouterr().err


PROGRAM = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
from lexico_services.cli import main
try:
    code = main({arguments!r})
except SystemExit as end:
    code = end.code
print(sorted({{"torch", "grpc", "ray", "redis"}} & {{n for n, m in sys.modules.items() if m}}))
sys.exit(code)
"""


def lexico(*arguments: str, missing: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`lexico` in a process in which some packages cannot be imported."""
    program = PROGRAM.format(missing=missing, arguments=list(arguments))
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_help_imports_nothing_heavy() -> None:
    done = lexico("--help")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "[]"


def test_train_needs_no_package_of_the_service() -> None:
    done = lexico("train", "--help", missing=("grpc", "grpc_health", "ray", "redis"))
    assert done.returncode == 0, done.stderr
    assert "--sparsity" in done.stdout


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        (["serve", "--offload-port", "0", "--reload-port", "0"], "grpc", "service"),
        (["reload-server", "--store", "redis://127.0.0.1:1"], "grpc_health", "reload"),
        (["offload-server", "--store", "redis://127.0.0.1:1", "--port", "0"], "ray", "service"),
        (
            ["train", *("--model", "m", "--text", "t", "--out", "o", "--ray-address", "h:1")],
            "ray",
            "worker",
        ),
    ],
)
def test_a_missing_package_names_its_extra(command: list[str], package: str, extra: str) -> None:
    done = lexico(*command, missing=(package,))
    assert done.returncode == 2, done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said == f"lexico: needs {package}: pip install 'lexico-offload[{extra}]'"


def test_rays_folder_is_ours_alone_and_short_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    folder = ray_runtime._make_folder()
    try:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert ray_runtime._LONGEST_SOCKET.index("/r/") == len(f"/{folder.name}")
    finally:
        folder.rmdir()
    long = tmp_path / ("long" * 10)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    instead = ray_runtime._make_folder()
    assert str(instead.parent) == "/tmp"
    instead.rmdir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(errors.ConfigurationError, match="TMPDIR"):
        ray_runtime._make_folder()
    assert not list(long.iterdir())


def test_rays_node_may_take_longer_than_ray_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[dict[str, str] | None] = [None, None, {"node": "there"}]

    def get_node(address: str, node: str) -> dict[str, str]:
        answer = answers.pop(0) if answers else None
        if answer is None:
            raise RuntimeError(f"no node {node} at {address}")
        return answer

    monkeypatch.setattr(services, "get_node", get_node)
    parts = ray_patience._Parts()
    with ray_patience._node_waited_for(PATIENCE_S, parts):
        assert services.get_node("a", "b") == {"node": "there"}
    assert services.get_node is get_node
    late = pytest.raises(RuntimeError, match="no node b at a")
    with ray_patience._node_waited_for(0.2, parts), late:
        services.get_node("a", "b")


def test_rays_agents_get_their_ports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = "ab" * 28
    given: dict[str, Any] = {}

    def start_raylet(
        node_id: str,
        session_dir: str,
        metrics_agent_port: int | None = None,
        metrics_export_port: int | None = None,
        dashboard_agent_listen_port: int | None = None,
        runtime_env_agent_port: int | None = None,
    ) -> SimpleNamespace:
        given.update(locals())
        return SimpleNamespace(process=None)

    monkeypatch.setattr(services, "start_raylet", start_raylet)
    with ray_patience.patient_start(PATIENCE_S):
        raylet: Any = services.start_raylet
        assert raylet(node, str(tmp_path), metrics_agent_port=0).process is None
    assert vars(services)["start_raylet"] is start_raylet
    ports = {given[name] for name in ray_patience._AGENTS_PORTS}
    assert len(ports) == 4
    assert all(port in ray_patience._PORTS for port in ports)
    told = (tmp_path / f"dashboard_agent_listen_port_{node}").read_text()
    assert int(told) == given["dashboard_agent_listen_port"]


def test_whatever_ray_raises_at_its_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(errors.ConfigurationError, match=r"Ray does not start: .*timed out"):
        RayRuntime(RayConfig())._init()


AGENT = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, sys.argv[1].encode())  # PR_SET_NAME
print(flush=True)
sys.stdin.read()
"""


def test_what_outlives_ray_is_ended_and_nothing_else() -> None:
    children = {}
    for name in ("ray::agent", "ray::other", "rays"):
        child = subprocess.Popen(
            [sys.executable, "-c", AGENT, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        children[name] = child
    try:
        ray_runtime._end_leftovers(grace_s=0.1)
        alive = {name for name, child in children.items() if child.poll() is None}
        assert alive == {"rays"}
    finally:
        for child in children.values():
            child.kill()
            child.communicate()


def test_signals_stay_ours_while_ray_starts() -> None:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stopped = stop_event()
        ours = signal.getsignal(signal.SIGTERM)
        with ray_runtime._sigterm_kept():
            signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
            signal.raise_signal(signal.SIGTERM)
        assert stopped.wait(PATIENCE_S)
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class Store:
    """A store that answers as told."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)

    def ping(self) -> None:
        if not self.answers.pop(0):
            raise errors.StoreUnavailable("nobody there")


def test_a_store_is_gone_after_several_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "PING_EVERY_S", -1.0)
    watch = serve.StoreWatch(Store(False, False, True, False, False, False))  # type: ignore[arg-type]
    for _ in range(5):
        watch.check()
    with pytest.raises(errors.Unavailable, match="embedded store"):
        watch.check()


class Ingress:
    """A handle whose calls end as told; a call without an outcome never ends."""

    def __init__(self) -> None:
        self.outcomes: list[Exception | None] = []
        self.usage = self

    def remote(self) -> Any:
        return self

    def result(self, timeout_s: float) -> None:
        if not self.outcomes:
            raise TimeoutError
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome


def test_an_ingress_is_given_time_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("lexico_services.offload.server.time.monotonic", lambda: now)
    listen = ListenConfig(drain_s=5)
    server = OffloadServer(listen, OffloadConfig(), EncoderConfig(STORE), RayConfig())
    ingress = Ingress()
    server._ingress, server._asked, server._answered = ingress, now, now

    def pass_time(seconds: float) -> None:
        nonlocal now
        for _ in range(int(seconds)):
            now += 1.0
            server.check()

    for outcome in (None, RuntimeError("died"), None):
        ingress.outcomes = [outcome]
        pass_time(2 * PROBE_EVERY_S)
        assert not ingress.outcomes
    with pytest.raises(errors.Unavailable, match="ingress"):
        pass_time(RECOVERY_S + listen.drain_s + 2 * PROBE_EVERY_S)
