"""Pools on this machine, and devices. `tests/integration/test_train_ray.py` has that of Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from lexico_lab.training import ray_pool as training_pool
from lexico_lab.training.device import device_for
from lexico_lab.training.pool import LocalPool
from lexico_lab.training.state import work_through
from lexico_proto.errors import ConfigurationError, InternalError, InvalidInput, Unavailable
from lexico_worker import ray_runtime
from lexico_worker.ray_runtime import RayConfig, RayRuntime
from tests.support.training_work import Chores
from tests.support.waiting import PATIENCE_S, wait_until

REFUSING: list[int | str] = [1, "refuse", 2]
DYING: list[int | str] = [1, "die", 2]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_or_all_the_same(workers: int, tmp_path: Path) -> None:
    pool = LocalPool(workers)
    assert list(pool.map(Chores(tmp_path), range(7))) == [-n for n in range(7)]
    assert sorted(pool.map(Chores(tmp_path), range(7), ordered=False)) == [
        -n for n in range(6, -1, -1)
    ]
    assert len(list(tmp_path.glob("began-*"))) <= 2 * workers
    assert list(pool.map(Chores(tmp_path), [])) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_items_are_drawn_as_workers_become_free(workers: int, tmp_path: Path) -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            drawn.append(number)
            yield number

    results = LocalPool(workers).map(Chores(tmp_path), items())
    assert [next(results), next(results)] == [0, -1]
    results.close()
    assert len(drawn) <= 2 + 2 * workers


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_workers_come_out(workers: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="such an item"):
        list(LocalPool(workers).map(Chores(tmp_path), REFUSING))


def test_a_process_that_dies_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="--workers"):
        list(LocalPool(2).map(Chores(tmp_path), DYING))


def test_threads_are_those_of_the_work(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    results = LocalPool().map(Chores(tmp_path, threads=before + 1), [1, 2])
    next(results)
    assert torch.get_num_threads() == before + 1
    results.close()
    assert torch.get_num_threads() == before


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tpu", "meta", "cpu:1", "cuda:x", ""):
        with pytest.raises(ConfigurationError, match="must be cpu, cuda or cuda:N"):
            device_for(name)
    assert device_for("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_for() == "cpu"
    with pytest.raises(ConfigurationError, match="0 CUDA devices"):
        device_for("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_for() == "cuda"
    assert device_for("cuda:1") == "cuda:1"
    with pytest.raises(ConfigurationError, match="2 CUDA devices"):
        device_for("cuda:2")


@pytest.mark.parametrize("address", ["127.0.0.1", "somewhere", "h:0", "h:99999", ":1", "ray://h"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        RayRuntime(RayConfig(address=address)).start()


def test_no_cluster_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        for address in (at, f"ray://{at}"):
            with pytest.raises(ConfigurationError, match="no cluster answers"):
                RayRuntime(RayConfig(address=address)).start()
        monkeypatch.setenv("RAY_ADDRESS", at)
        with pytest.raises(ConfigurationError, match="no cluster answers"):
            RayRuntime(RayConfig(address="auto")).start()


def test_a_cluster_on_loopback_alone_is_joined_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runtime, "_own_address", lambda: "192.0.2.1")
    monkeypatch.setattr(ray_runtime, "_ANSWER_S", 0.2)
    monkeypatch.setenv(ray_runtime._ON_LOOPBACK, "")
    with socket.create_server(("127.0.0.1", 0)) as server:
        ray_runtime.check_answers(f"127.0.0.1:{server.getsockname()[1]}")
    assert os.environ[ray_runtime._ON_LOOPBACK] == "0"


class Deserted(training_pool._Crew[int, int]):
    """A crew without Ray and with a clock of its own: its first worker does some items and is lost,
    and no other comes.
    """

    def __init__(self, does: int, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> None:
        super().__init__(Chores(Path()), 1, "cpu")
        self.left, self._seconds, self._now = does, seconds, 1000.0
        monkeypatch.setattr(training_pool, "time", SimpleNamespace(monotonic=lambda: self._now))

    def _hire(self) -> None:
        self._running[object()] = training_pool._Call(object(), training_pool._Phase.UP)
        if self.left and not self._workers:
            self._running.clear()
            self._workers.append("worker")
            self._idle.append("worker")

    def _draw(self, source: Iterator[int], number: int) -> training_pool._Job | None:
        item = next(source, None)
        return None if item is None else training_pool._Job(number, item)

    def _give(self, job: training_pool._Job) -> None:
        self._idle.clear()
        self._working += 1
        call = training_pool._Call("worker", training_pool._Phase.DO, job)
        self._running["call"] = call

    def _look(self) -> dict[int, int]:
        self._now += training_pool._LOOK_S
        call = self._running.get("call")
        if call is None or call.job is None:
            return {}
        self._now += self._seconds
        del self._running["call"]
        self._working -= 1
        if not self.left:
            self._again.append(call.job)
            self._hire()
            return {}
        self.left -= 1
        self._idle.append("worker")
        return {call.job.number: -call.job.item}


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("does", [0, 1, 2])
def test_a_cluster_that_has_lost_all_workers_is_not_waited_for(
    does: int, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    results = Deserted(does, monkeypatch).results(iter([1, 2, 3]), ordered)
    with pytest.raises(Unavailable, match="no worker started"):
        found.extend(results)
    assert found == [-1, -2][:does]


def test_work_may_take_longer_than_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Deserted(3, monkeypatch, seconds=2 * training_pool._START_S)
    assert list(slow.results(iter([1, 2, 3]), ordered=True)) == [-1, -2, -3]


def test_errors_of_ray_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    raised: list[tuple[Exception, type[Exception], str]] = [
        (ray.exceptions.ObjectStoreFullError("full"), Unavailable, "object store is full"),
        (ray.exceptions.RaySystemError("first\nlast"), Unavailable, "last$"),
        (ConnectionError("gone"), Unavailable, "gone"),
        (TypeError("no such lock"), InternalError, "cannot be sent .no such lock"),
    ]
    crew = training_pool._Crew[int, int](Chores(Path()), 1, "cpu")
    for error, kind, said in raised:

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        for name in ("put", "wait", "nodes", "kill"):
            monkeypatch.setattr(ray, name, fail)
        with pytest.raises(kind, match=said):
            crew._draw(iter([1]), 0)
        with pytest.raises(kind, match=said):
            crew._look()
        with pytest.raises(kind, match=said):
            training_pool.RayPool(RayConfig())._room(1)
        crew._workers.append("worker")
        crew.dismiss()
        assert crew._workers == []


def test_what_ended_a_worker_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "kill", lambda _: None)
    monkeypatch.setattr(training_pool._Crew, "_hire", lambda _: None)
    error = ray.exceptions.RayActorError(error_msg="Traceback\nModuleNotFoundError: No module\n")
    job = training_pool._Job(0, 1)
    for phase, of in ((training_pool._Phase.UP, None), (training_pool._Phase.DO, job)):
        crew = training_pool._Crew[int, int](Chores(Path()), 1, "cpu")
        crew._workers = ["worker"] * 3
        lost = training_pool._Call("worker", phase, of)
        crew._replace(lost, error)
        crew._replace(lost, error)
        with pytest.raises(Unavailable, match=r"ModuleNotFoundError: No module$"):
            crew._replace(lost, error)


def test_workers_end_when_the_consumer_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    class Watched(LocalPool):
        def map(self, work, items, *, ordered=True):  # type: ignore[no-untyped-def]
            try:
                yield (tmp_path / "absent" / "result", b"")
            finally:
                ended.append(True)

    with pytest.raises(ConfigurationError, match="cannot write") as kept:
        list(work_through([], Watched()))
    assert ended == [True]
    assert kept.tb is not None, "the traceback, which holds the iterator, is still there"


PARENT = """
import sys
from pathlib import Path
from lexico_lab.training.pool import LocalPool
from tests.support.training_work import Chores

if __name__ == "__main__":
    list(LocalPool(2).map(Chores(Path(sys.argv[1])), ["slow", "slow"]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_workers_end_with_a_run_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    program, folder = tmp_path / "parent.py", tmp_path / "began"
    program.write_text(PARENT)
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, str(program), str(folder)], stderr=subprocess.DEVNULL, env=environment
    )
    try:
        wait_until(lambda: (folder / "slow").exists(), "an item at work")
        workers = psutil.Process(parent.pid).children(recursive=True)
        parent.send_signal(number)
        assert parent.wait(PATIENCE_S) != 0
        _, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
        assert alive == []
    finally:
        parent.kill()
        parent.wait()
