"""Loads into blocks and stores from copies, against the service in memory, without an engine."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lexico_client import AsyncClient, InMemoryTransport
from lexico_client.engines._counts import Counts
from lexico_client.engines._service import Service
from lexico_client.engines.vllm import _worker
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm._orders import LoadOrder, Orders, StoreOrder
from lexico_client.engines.vllm._paged import PagedCache
from lexico_client.engines.vllm._worker import WorkerSide
from lexico_codec.keys import page_keys
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import Busy, Unavailable
from lexico_proto.metrics import ENGINE_PAGES, ENGINE_STAGED, ENGINE_TOKENS, Metrics
from lexico_proto.v1 import offload_pb2 as offload
from lexico_proto.v1 import reload_pb2 as reload
from tests.support.client_fixtures import PATIENT, flipped
from tests.support.vllm_caches import EngineCache, cpu, flash
from tests.support.vllm_fakes import BLOCK_TOKENS, GEOMETRY, PAGE_TOKENS, engine_spec
from tests.support.waiting import PATIENCE_S, until, wait_until

BLOCKS = 24
TOKENS = 4 * PAGE_TOKENS
IDS = np.arange(100, 100 + TOKENS, dtype="<u4")
HERE, THERE = (3, 9, 2, 14, 7, 5, 11, 20), (23, 1, 8, 0, 16, 4, 6, 10)


class Transport(InMemoryTransport):
    """The service in memory, which waits and fails as told."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.puts = self.gets = 0
        self.failing: Exception | None = None

    async def put(
        self, messages: AsyncGenerator[bytes, None], timeout: float
    ) -> offload.PutResponse:
        self.puts += 1
        await until(self.open.is_set, "the service to be let go on")
        if self.failing is not None:
            await messages.aclose()
            raise self.failing
        return await super().put(messages, timeout)

    async def get(
        self, request: reload.GetRequest, timeout: float
    ) -> AsyncGenerator[reload.GetResponse, None]:
        self.gets += 1
        await until(self.open.is_set, "the service to be let go on")
        if self.failing is not None:
            raise self.failing
        async for message in super().get(request, timeout):
            yield message


class Rig:
    """A worker with a cache of its own."""

    def __init__(self, transport: Transport, folder: Path, **options: Any) -> None:
        self.spec: CacheSpec = options.pop("spec", engine_spec())
        make = options.pop("make", cpu)
        self.metrics, self.transport = Metrics(), transport
        client = AsyncClient(transport=transport, timeouts=PATIENT, dictionaries_dir=folder)
        fields = {
            "load_seconds": PATIENCE_S,
            "offload_seconds": PATIENCE_S,
            "drain_seconds": PATIENCE_S,
            "staging_bytes": 1 << 20,
            "concurrent_loads": 2,
            "concurrent_stores": 1,
        }
        self.service = Service(client, "vllm", LOG)
        self.worker = WorkerSide(
            self.spec, self.service, Counts(LOG, self.metrics), **{**fields, **options}
        )
        g = GEOMETRY
        self.layers: list[EngineCache] = [
            make(BLOCKS, BLOCK_TOKENS, g.kv_heads, g.head_dim, g.torch_dtype)
            for _ in range(g.layers)
        ]
        named = [(f"layers.{i}", each.tensor, each.write) for i, each in enumerate(self.layers)]
        self.cache, _ = PagedCache.over(named, self.spec, BLOCK_TOKENS)
        self.worker.register(self.cache)

    def compute(self, blocks: tuple[int, ...] = HERE, seed: int = 0) -> Tensor:
        """The engine computes a prompt."""
        generator = torch.Generator().manual_seed(seed)
        shape = (GEOMETRY.layers, 2, TOKENS, GEOMETRY.kv_heads, GEOMETRY.head_dim)
        cache = torch.randn(shape, generator=generator)
        at = torch.arange(TOKENS)
        slots = torch.tensor(blocks)[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS
        for layer, each in enumerate(self.layers):
            each.write(cache[layer, 0], cache[layer, 1], slots)
        return cache

    def store(self, first_page: int = 0, ids: Any = IDS, **changes: Any) -> None:
        order = StoreOrder("s", replace(self.spec, **changes), ids, HERE, first_page)
        self.worker.stage(Orders(stores=[order]))

    def stored(self) -> None:
        wait_until(lambda: self.worker.stores_under_way == 0, "every store to end")

    def load(self, start: int = 0, stop: int = TOKENS, name: str = "r", **changes: Any) -> set[int]:
        """Blocks that are lost."""
        self.order(start, stop, name, **changes)
        return self.ended(name)

    def order(self, start: int = 0, stop: int = TOKENS, name: str = "r", **changes: Any) -> None:
        ids = IDS[: -(-stop // PAGE_TOKENS) * PAGE_TOKENS]
        spec = replace(self.spec, **changes)
        order = LoadOrder(name, spec, ids, THERE[: -(-stop // BLOCK_TOKENS)], start, stop)
        self.worker.begin(Orders(loads=[order]))

    def ended(self, name: str = "r") -> set[int]:
        arrived = wait_until(self.worker.arrived, "a load to end")
        assert arrived == {name}
        return self.worker.bad_blocks()

    def read(self, count: int = TOKENS) -> Tensor:
        return self.cache.copied(THERE, 0, count)

    def counted(self, family: Any) -> dict[str, int | float]:
        counts = self.metrics.snapshot().get(family, {})
        return {" ".join(values): number for values, number in counts.items() if number}


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def rig(transport: Transport, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(transport, tmp_path)
    yield made
    transport.open.set()
    made.worker.close()


def test_what_one_engine_stored_another_loads(
    rig: Rig, transport: Transport, tmp_path: Path
) -> None:
    """Of another layout, and with blocks elsewhere."""
    computed = rig.compute()
    rig.store()
    rig.stored()
    other = Rig(transport, tmp_path, make=flash)
    assert other.load() == set()
    assert torch.equal(other.read(), computed)
    other.worker.close()
    assert rig.counted(ENGINE_PAGES) == {"sent": 4}
    assert other.counted(ENGINE_TOKENS) == {"loaded": TOKENS}


def test_blocks_are_free_once_the_step_is_over(rig: Rig, transport: Transport) -> None:
    """What others compute into them meanwhile is not what is stored."""
    transport.open.clear()
    computed = rig.compute()
    rig.store()
    rig.compute(seed=1)
    transport.open.set()
    rig.stored()
    assert rig.load() == set()
    assert torch.equal(rig.read(), computed)


def test_only_wanted_tokens_are_loaded(rig: Rig) -> None:
    computed = rig.compute()
    rig.store()
    rig.stored()
    before = rig.compute(THERE, seed=2)
    assert rig.load(start=BLOCK_TOKENS, stop=TOKENS - BLOCK_TOKENS) == set()
    before[:, :, BLOCK_TOKENS:-BLOCK_TOKENS] = computed[:, :, BLOCK_TOKENS:-BLOCK_TOKENS]
    assert torch.equal(rig.read(), before)


def test_pages_that_the_service_has_are_not_copied(rig: Rig, transport: Transport) -> None:
    rig.compute()
    rig.store(ids=IDS[: 2 * PAGE_TOKENS])
    rig.stored()
    rig.store(first_page=2)
    rig.stored()
    assert rig.counted(ENGINE_PAGES) == {"sent": 4}
    assert len(transport.pages) == 4


def test_what_left_the_store_meanwhile_is_no_hole(rig: Rig, transport: Transport) -> None:
    """Of pages before those that were copied nothing is here any more: nothing is stored."""
    rig.compute()
    rig.store(first_page=2)
    rig.stored()
    assert rig.counted(ENGINE_PAGES) == {"failed": 2}
    assert not transport.pages


@pytest.mark.parametrize("page", range(4))
def test_a_damaged_frame_is_lost_from_its_block_on(
    rig: Rig, transport: Transport, page: int, caplog: pytest.LogCaptureFixture
) -> None:
    computed = rig.compute()
    rig.store()
    rig.stored()
    frames = transport.pages[page_keys(rig.spec, IDS)[page]]
    frames[-1] = flipped(frames[-1])
    with caplog.at_level(logging.WARNING):
        lost = rig.load()
    assert lost == set(THERE[2 * page :])
    there = page * PAGE_TOKENS
    assert torch.equal(rig.read()[:, :, :there], computed[:, :, :there])
    assert rig.counted(ENGINE_TOKENS)["lost"] == TOKENS - there
    assert len(caplog.records) == 1


def test_a_service_that_fails_loses_every_block_and_warns_once(
    rig: Rig, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    rig.compute()
    rig.store()
    rig.stored()
    transport.failing = Unavailable("gone")
    with caplog.at_level(logging.WARNING):
        assert [rig.load(name=str(i)) for i in range(3)] == [set(THERE)] * 3
    assert [record.args[0] for record in caplog.records if record.args] == ["load"]  # type: ignore[index]


def test_a_store_that_is_refused_frees_its_copies(
    rig: Rig, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    transport.failing = Busy("full")
    rig.compute()
    with caplog.at_level(logging.WARNING):
        rig.store()
        rig.stored()
    assert rig.counted(ENGINE_PAGES) == {"failed": 4}
    assert rig.counted(ENGINE_STAGED) == {}
    assert "full" in caplog.text


def test_copies_are_bounded_and_what_does_not_fit_is_counted(
    transport: Transport, tmp_path: Path
) -> None:
    page = engine_spec().page_bytes
    rig = Rig(transport, tmp_path, staging_bytes=3 * page + 1)
    transport.open.clear()
    rig.compute()
    rig.store()
    rig.store(ids=IDS[::-1].copy())
    assert rig.counted(ENGINE_STAGED) == {"": 3 * page}
    assert rig.counted(ENGINE_PAGES) == {"dropped": 5}
    transport.open.set()
    rig.stored()
    assert rig.counted(ENGINE_PAGES) == {"dropped": 5, "sent": 3}
    assert rig.counted(ENGINE_STAGED) == {}
    assert rig.load(stop=3 * PAGE_TOKENS) == set()
    rig.worker.close()


def test_salts_are_apart(rig: Rig) -> None:
    computed = rig.compute()
    rig.store(salt=b"mine")
    rig.stored()
    assert rig.load(salt=b"mine") == set()
    assert torch.equal(rig.read(), computed)
    assert rig.load(salt=b"yours") == set(THERE)
    assert rig.load() == set(THERE)


def test_loads_beyond_the_bound_wait_and_then_are_lost(
    transport: Transport, tmp_path: Path
) -> None:
    rig = Rig(transport, tmp_path, concurrent_loads=1, load_seconds=0.05)
    transport.open.clear()
    for name in ("a", "b"):
        rig.order(name=name)
    found: set[str] = set()

    def both() -> bool:
        found.update(rig.worker.arrived())
        return len(found) == 2

    wait_until(both, "both to end")
    assert rig.worker.bad_blocks() == set(THERE)
    transport.open.set()
    rig.worker.close()


def test_a_load_that_waits_is_not_begun_for_a_request_that_is_over(
    transport: Transport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its blocks are free as soon as its turn comes, and the next one's turn comes too."""
    rig = Rig(transport, tmp_path, concurrent_loads=1)
    rig.compute()
    rig.store()
    rig.stored()
    transport.open.clear()
    for name in ("a", "b", "c"):
        rig.order(name=name)
    rig.worker.over({"b", "elsewhere"})
    transport.open.set()
    arrived: list[str] = []

    def all_arrived() -> bool:
        arrived.extend(rig.worker.arrived())
        return len(arrived) == 3

    wait_until(all_arrived, "all to end")
    assert rig.worker.bad_blocks() == set(THERE)
    assert transport.gets == 2
    assert not rig.worker._over
    assert not caplog.messages
    rig.worker.close()


def test_an_engine_that_has_nothing_to_compute_waits_for_a_load(
    rig: Rig, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a wait that nothing but a load ends."""
    monkeypatch.setattr(_worker, "REST_S", PATIENCE_S)
    rig.worker.rest()  # none is under way: at once
    transport.open.clear()
    rig.order()
    waiting = threading.Thread(target=rig.worker.rest, daemon=True)
    waiting.start()
    assert waiting.is_alive()
    transport.open.set()
    waiting.join(PATIENCE_S)
    assert rig.worker.arrived() == {"r"}
    rig.worker.rest()  # it has ended: at once


def test_an_engine_that_ends_waits_for_its_stores(rig: Rig, transport: Transport) -> None:
    rig.compute()
    rig.store()
    rig.worker.close()
    assert len(transport.pages) == 4
    rig.order()
    assert rig.ended() == set(THERE)
    rig.store()
    assert rig.counted(ENGINE_PAGES) == {"sent": 4, "failed": 4}


def test_what_cannot_be_stored_in_time_is_left(transport: Transport, tmp_path: Path) -> None:
    rig = Rig(transport, tmp_path, drain_seconds=0.01)
    transport.open.clear()
    rig.compute()
    rig.store()
    wait_until(lambda: transport.puts, "a put")
    rig.worker.close()
    assert rig.counted(ENGINE_PAGES) == {"failed": 4}


def test_a_device_without_room_for_copies_goes_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    rig.compute()
    monkeypatch.setattr(rig.cache, "copied", full)
    rig.store()
    assert rig.worker.stores_under_way == 0
    assert rig.counted(ENGINE_PAGES) == {"failed": 4}
    assert rig.counted(ENGINE_STAGED) == {}
    assert "no room" in caplog.text


def test_nothing_is_kept_of_calls_that_have_ended(rig: Rig) -> None:
    rig.compute()
    rig.store()
    rig.stored()
    rig.load()
    loop = rig.service._loop
    assert loop is not None
    wait_until(lambda: not loop._calls, "calls to be forgotten", lambda: loop._calls)
