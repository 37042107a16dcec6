"""The loop of an adapter's service is lost under a call: the engine's request is a miss all the
same, and never while a thread may still write into the engine's memory."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lexico_client import AsyncClient
from lexico_client.engines import _service
from lexico_client.engines._counts import Counts
from lexico_client.engines._service import Service
from lexico_client.engines.lmcache._log import LOG
from lexico_client.engines.lmcache._tasks import Tasks
from lexico_client.engines.vllm._coded import Finder
from lexico_client.engines.vllm._scheduler import SchedulerSide
from lexico_proto.errors import Cancelled, DeadlineExpired, InternalError, LexicoError
from lexico_proto.metrics import ENGINE_PAGES, ENGINE_STAGED, Metrics
from tests.support.client_fixtures import PATIENT
from tests.support.lost_loops import HeldThread, Stuck, end
from tests.support.vllm_fakes import BLOCK_TOKENS, engine_spec, request
from tests.support.waiting import PATIENCE_S, linger, wait_until
from tests.unit import test_sglang_storage as sglang
from tests.unit import test_vllm_tier as tier
from tests.unit import test_vllm_worker as vllm

SOON_S = 0.3
"""A deadline that passes while a loop is stuck."""


class Load(ABC):
    """A load of an adapter's, of what was stored before."""

    service: Service

    @abstractmethod
    def begin(self) -> None: ...

    @abstractmethod
    def missed(self) -> bool:
        """Whether it has ended; as a miss."""

    @abstractmethod
    def read(self) -> Tensor:
        """The memory that it is about."""

    def close(self) -> None:
        self.service.close()


class OfVllm(Load):
    def __init__(self, folder: Path, seconds: float) -> None:
        self.transport = vllm.Transport()
        self.rig = vllm.Rig(self.transport, folder, load_seconds=seconds)
        self.service = self.rig.service
        self.rig.compute()
        self.rig.store()
        self.rig.stored()

    def begin(self) -> None:
        self.rig.order()

    def missed(self) -> bool:
        if not (arrived := self.rig.worker.arrived()):
            return False
        assert (arrived, self.rig.worker.bad_blocks()) == ({"r"}, set(vllm.THERE))
        assert not self.rig.worker._orders
        return True

    def read(self) -> Tensor:
        return self.rig.read()


class OfSglang(Load):
    def __init__(self, folder: Path, seconds: float) -> None:
        self.transport = sglang.Transport()
        self.rig = sglang.Rig(self.transport, folder, load_seconds=seconds)
        self.service, self.names = self.rig.service, sglang.hashes(2)
        self.rig.compute(0, 1)
        self.rig.side.store(self.rig.of(self.names, 0, 1))
        self.answers: list[list[bool]] = []

    def begin(self) -> None:
        pages = self.rig.of(self.names, 4, 5)
        wait = threading.Thread(target=lambda: self.answers.append(self.rig.side.load(pages)))
        wait.daemon = True
        wait.start()
        loop = self.service._loop
        wait_until(lambda: self.answers or (loop is not None and loop._calls), "the call")

    def missed(self) -> bool:
        assert self.answers in ([], [[False, False]])
        return bool(self.answers)

    def read(self) -> Tensor:
        return self.rig.read(4, 5)


class OfTier(Load):
    def __init__(self, folder: Path, seconds: float) -> None:
        self.transport = sglang.Transport()
        self.rig = tier.Rig(self.transport, folder, load_seconds=seconds)
        self.service = self.rig.service
        self.rig.compute(0, 1)
        self.rig.store(tier.keys(2), 0, 1)

    def begin(self) -> None:
        self.rig.begin(tier.keys(2), 4, 5, load=True)

    def missed(self) -> bool:
        ended = self.rig.side.ended()
        assert not any(each.success or each.keys for each in ended)
        return bool(ended)

    def read(self) -> Tensor:
        return self.rig.read(4, 5)


class OfLmcache(Load):
    """The task of LMCache's, over the load of vLLM's blocks: an object's is in `ObjectStore`."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.seconds, self.told = seconds, threading.Event()
        self.of_vllm = OfVllm(folder, PATIENCE_S)
        self.transport, self.service = self.of_vllm.transport, self.of_vllm.service
        self.into = torch.full((2, 2, vllm.TOKENS, 2, 8), float("nan"))
        self.tasks: Tasks[list[bool]] = Tasks("load", self.told.set, Counts(LOG, Metrics()))

    def begin(self) -> None:
        spec = self.of_vllm.rig.spec

        def view(page: int, group: int) -> Tensor:
            layers, first = spec.group_range(group), page * spec.page_tokens
            return self.into[layers.start : layers.stop, :, first : first + spec.page_tokens]

        async def load() -> list[bool]:
            loaded = await self.service.client.load(spec, vllm.IDS, lambda _: view)
            return [loaded.pages > 0]

        self.task = self.tasks.run(self.service, load(), [False], self.seconds)

    def missed(self) -> bool:
        if not self.told.is_set():
            return False
        assert self.tasks.take(self.task) == [False]
        assert not self.tasks.under_way
        return True

    def read(self) -> Tensor:
        return self.into


KINDS: dict[str, Any] = {"vllm": OfVllm, "sglang": OfSglang, "tier": OfTier, "lmcache": OfLmcache}


@pytest.fixture(params=KINDS)
def make(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[float], Any]]:
    monkeypatch.setattr(_service, "GRACE_SECONDS", 0.0)
    made: list[Any] = []

    def load(seconds: float = PATIENCE_S) -> Any:
        made.append(KINDS[request.param](tmp_path, seconds))
        return made[0]

    yield load
    for each in made:
        each.transport.open.set()
        each.close()


def test_a_loop_that_ends_under_a_load(make: Callable[..., Any]) -> None:
    load = make()
    load.transport.open.clear()
    load.begin()
    end(load.service)
    wait_until(load.missed, "the load to be a miss")
    with pytest.raises(LexicoError):
        load.service.begin(nothing())


def test_a_loop_that_is_stuck_past_the_deadline_of_a_load(make: Callable[..., Any]) -> None:
    """And that writes nothing any more once it goes on: others have the memory by then."""
    load = make(SOON_S)
    stuck = Stuck(load.service)
    load.begin()
    wait_until(load.missed, "the load to be a miss")
    before = load.read().clone()
    stuck.go_on()
    load.service.wait(nothing(), PATIENCE_S)
    linger()
    assert same(load.read(), before)


def test_a_service_that_is_closed_under_a_load(make: Callable[..., Any]) -> None:
    load = make()
    load.transport.open.clear()
    load.begin()
    load.service.close()
    assert load.service.closed
    wait_until(load.missed, "the load to be a miss")


def test_a_service_that_is_closed_while_its_loop_is_stuck(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexico_client._loop_thread.GRACE_SECONDS", 0.05)
    monkeypatch.setattr(_service, "_CLOSE_S", 0.05)
    load = make()
    stuck = Stuck(load.service)
    load.begin()
    load.service.close()
    wait_until(load.missed, "the load to be a miss")
    stuck.go_on()


@pytest.mark.parametrize("lose", ["end", "stick", "close"])
def test_a_thread_that_is_at_the_memory_is_waited_for(
    lose: str, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if lose == "close":
        monkeypatch.setattr("lexico_client._loop_thread.GRACE_SECONDS", 0.05)
        monkeypatch.setattr(_service, "_CLOSE_S", 0.05)
    load = make(SOON_S if lose == "stick" else PATIENCE_S)
    held = HeldThread(monkeypatch)
    load.begin()
    assert held.there.wait(PATIENCE_S)
    stuck = Stuck(load.service) if lose == "stick" else None
    if lose == "end":
        end(load.service)
    elif lose == "close":
        load.service.close()
    linger()
    assert not load.missed()
    held.go_on.set()
    wait_until(load.missed, "the load to be a miss")
    assert held.left.is_set()
    if stuck is not None:
        stuck.go_on()


async def nothing() -> None:
    pass


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(-1.0), other.nan_to_num(-1.0))


@pytest.fixture
def of_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OfVllm]:
    monkeypatch.setattr(_service, "GRACE_SECONDS", 0.0)
    made = OfVllm(tmp_path, PATIENCE_S)
    yield made
    made.transport.open.set()
    made.close()


def test_a_store_whose_loop_ends_frees_its_copies(of_vllm: OfVllm) -> None:
    rig, transport = of_vllm.rig, of_vllm.transport
    transport.open.clear()
    rig.store(salt=b"another")
    wait_until(lambda: transport.puts > 1, "the put")
    end(rig.service)
    rig.stored()
    assert rig.counted(ENGINE_PAGES) == {"sent": 4, "failed": 4}
    assert rig.counted(ENGINE_STAGED) == {}


def test_a_match_whose_loop_is_stuck_is_a_miss(of_vllm: OfVllm) -> None:
    service = of_vllm.service
    coding = service.wait(service.client.coding(engine_spec(), "lossless"), PATIENCE_S)
    side = SchedulerSide(
        engine_spec(),
        Finder(service, coding, 1, SOON_S),
        Counts(LOG, Metrics()),
        block_tokens=BLOCK_TOKENS,
        recent_tokens=1,
    )
    stuck, asked = Stuck(service), request()
    side.new_request(asked)
    assert wait_until(lambda: side.matched(asked, 0) is not None, "an answer")
    assert side.matched(asked, 0) == 0
    stuck.go_on()


def test_sglang_asks_a_loop_that_is_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_service, "GRACE_SECONDS", 0.0)
    rig = sglang.Rig(sglang.Transport(), tmp_path, match_seconds=SOON_S)
    stuck = Stuck(rig.service)
    assert rig.side.exists(sglang.hashes(2)) == 0
    stuck.go_on()
    rig.service.close()


def test_the_tier_waits_for_no_job_of_a_loop_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = OfTier(tmp_path, PATIENCE_S)
    load.transport.open.clear()
    load.begin()
    end(load.service)
    load.rig.side.drain()
    assert load.missed()
    load.rig.side.close()


def test_why_a_call_was_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_service, "GRACE_SECONDS", 0.0)
    service = Service(AsyncClient(transport=vllm.Transport(), timeouts=PATIENT), "test", LOG)
    late = service.begin(for_ever(), SOON_S)
    wait_until(late.ended.is_set, "the deadline")
    with pytest.raises(DeadlineExpired):
        late.result()
    running = service.begin(for_ever())
    end(service)
    wait_until(running.ended.is_set, "the end")
    with pytest.raises(InternalError, match="ended under the call"):
        running.result()
    service.close()
    with pytest.raises(Cancelled):
        service.begin(nothing())


async def for_ever() -> None:
    await asyncio.Event().wait()
