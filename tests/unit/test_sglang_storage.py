"""The backend of SGLang against the service in memory, without an engine."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lexico_client import AsyncClient, InMemoryTransport
from lexico_client.engines import _service
from lexico_client.engines._counts import Counts
from lexico_client.engines._service import Service
from lexico_client.engines.sglang._log import LOG
from lexico_client.engines.sglang._pages import HostPages
from lexico_client.engines.sglang._storage import Page, StorageSide
from lexico_codec.geometry import Geometry
from lexico_codec.spec import CacheSpec, make_spec
from lexico_proto.errors import Busy, Unavailable
from lexico_proto.metrics import ENGINE_PAGES, ENGINE_REQUESTS, ENGINE_TOKENS, Metrics
from lexico_proto.v1 import offload_pb2 as offload
from lexico_proto.v1 import reload_pb2 as reload
from tests.support.client_fixtures import PATIENT, flipped
from tests.support.lost_loops import Stuck
from tests.support.residual_sets import residual_set
from tests.support.sglang_pools import DIM, HEADS, LAYERS, HostPool
from tests.support.waiting import PATIENCE_S, until, wait_until

SIZE = 16
"""Tokens a page."""


class Transport(InMemoryTransport):
    """The service in memory, which waits and fails as told."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.puts = self.matches = 0
        self.failing: Exception | None = None

    async def match(self, request: reload.MatchRequest, timeout: float) -> reload.MatchResponse:
        self.matches += 1
        if self.failing is not None:
            raise self.failing
        return await super().match(request, timeout)

    async def put(
        self, messages: AsyncGenerator[bytes, None], timeout: float
    ) -> offload.PutResponse:
        self.puts += 1
        if self.failing is not None:
            await messages.aclose()
            raise self.failing
        return await super().put(messages, timeout)

    async def get(
        self, request: reload.GetRequest, timeout: float
    ) -> AsyncGenerator[reload.GetResponse, None]:
        await until(self.open.is_set, "the service to be let go on")
        if self.failing is not None:
            raise self.failing
        async for message in super().get(request, timeout):
            yield message


def hashes(count: int, first: int = 0) -> list[bytes]:
    """As SGLang has them, of different pages."""
    return [hashlib.sha256(bytes([first + i])).digest() for i in range(count)]


class Rig:
    """A backend with a pool of its own."""

    def __init__(self, transport: Transport, folder: Path, **options: Any) -> None:
        fields = {name: options.pop(name) for name in ("layout", "dtype") if name in options}
        self.pool = HostPool(page_size=SIZE, **fields)
        self.pages = HostPages.of(self.pool)
        self.metrics, self.transport = Metrics(), transport
        name = str(self.pool.dtype).removeprefix("torch.")
        self.base: CacheSpec = make_spec(
            weights=bytes(32),
            geometry=Geometry(LAYERS, HEADS, DIM, name),
            codec="lossless",
            page_tokens=SIZE,
            group_layers=2,
        )
        client = AsyncClient(transport=transport, timeouts=PATIENT, dictionaries_dir=folder)
        self.service = Service(client, "sglang", LOG)
        asked = {"codec": "lossless", "known_positions": False, **options.pop("coding", {})}
        self.coding = self.service.wait(client.coding(self.base, **asked), PATIENCE_S)
        patience = dict.fromkeys(("match_seconds", "load_seconds", "offload_seconds"), PATIENCE_S)
        self.side = StorageSide(
            self.base,
            self.coding,
            self.service,
            Counts(LOG, self.metrics),
            **{
                **patience,
                "recent_tokens": 64,
                "concurrent_pages": 3,
                "stores": True,
                **options,
            },
        )

    def compute(self, *pages: int, seed: int = 0) -> Tensor:
        """The engine computes some pages of its pool, `[pages, layers, 2, tokens, heads, dim]`."""
        generator = torch.Generator().manual_seed(seed)
        shape = (len(pages), LAYERS, 2, SIZE, HEADS, DIM)
        computed = torch.randn(shape, generator=generator).to(self.pool.dtype)
        for page, each in zip(pages, computed, strict=True):
            self.pool.compute(page, each)
        return computed

    def of(self, names: Sequence[bytes], *pages: int) -> list[Page]:
        memories = self.pages.pages(self.pool.slots(*pages), len(pages))
        return [Page(name, memory) for name, memory in zip(names, memories, strict=True)]

    def read(self, *pages: int) -> Tensor:
        return torch.stack([self.pool.computed(page) for page in pages])

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
    made.service.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_one_engine_stored_another_loads(
    transport: Transport, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Of another layout, and with pages elsewhere."""
    one = Rig(transport, tmp_path, dtype=dtype)
    other = Rig(transport, tmp_path, dtype=dtype, layout="layer_first")
    computed, names = one.compute(3, 9, 0, 5), hashes(4)
    assert one.side.store(one.of(names, 3, 9, 0, 5)) == [True] * 4
    assert other.side.exists([*names, *hashes(1, 100)]) == 4
    assert other.side.load(other.of(names, 1, 2, 8, 7)) == [True] * 4
    assert torch.equal(other.read(1, 2, 8, 7), computed)
    assert one.counted(ENGINE_PAGES) == {"sent": 4}
    assert other.counted(ENGINE_TOKENS) == {
        "asked": 5 * SIZE,
        "promised": 4 * SIZE,
        "loaded": 4 * SIZE,
    }
    assert other.counted(ENGINE_REQUESTS) == {"hit": 1}
    one.service.close()
    other.service.close()


def test_a_page_is_found_whatever_comes_before_it(rig: Rig) -> None:
    """SGLang tells no positions: pages of one call begin anywhere in a prompt."""
    computed, names = rig.compute(0, 1, 2), hashes(3)
    rig.side.store(rig.of(names, 0, 1, 2))
    assert rig.side.exists(names[2:]) == 1
    assert rig.side.load(rig.of([names[2], names[0]], 6, 7)) == [True, True]
    assert torch.equal(rig.read(6, 7), computed[[2, 0]])


def test_only_consecutive_pages_are_promised(rig: Rig) -> None:
    rig.compute(0, 1)
    names = hashes(4)
    rig.side.store(rig.of([names[0], names[2]], 0, 1))
    assert rig.side.exists(names) == 1
    assert rig.side.exists(names[1:]) == 0
    assert rig.side.exists([]) == 0
    assert rig.counted(ENGINE_REQUESTS) == {"hit": 1, "miss": 1}


def test_pages_that_come_again_are_neither_sent_nor_read(rig: Rig, transport: Transport) -> None:
    """As after a flush of the engine's own cache, from other places of the pool."""
    computed, names = rig.compute(0, 1), hashes(2)
    rig.side.store(rig.of(names, 0, 1))
    assert transport.puts == 2
    assert rig.side.store(rig.of(names, 4, 5)) == [True, True]  # NaN: to read it would be refused
    assert transport.puts == 2
    assert rig.counted(ENGINE_PAGES) == {"sent": 2, "present": 2}
    rig.side.load(rig.of(names, 6, 7))
    assert torch.equal(rig.read(6, 7), computed)


def test_a_page_that_is_named_twice_in_a_call_is_sent_once(rig: Rig, transport: Transport) -> None:
    rig.compute(0, 1)
    (name,) = hashes(1)
    assert rig.side.store(rig.of([name, name], 0, 1)) == [True, True]
    assert transport.puts == 1


@pytest.mark.parametrize("page", range(4))
def test_a_damaged_page_ends_what_is_loaded(
    rig: Rig, transport: Transport, page: int, caplog: pytest.LogCaptureFixture
) -> None:
    computed, names = rig.compute(0, 1, 2, 3), hashes(4)
    for each in rig.of(names, 0, 1, 2, 3):
        before = set(transport.pages)
        rig.side.store([each])
        if each.hash == names[page]:
            (key,) = set(transport.pages) - before
    frames = transport.pages[key]
    frames[-1] = flipped(frames[-1])
    with caplog.at_level(logging.WARNING):
        found = rig.side.load(rig.of(names, 8, 9, 10, 11))
    assert found == [number < page for number in range(4)]
    assert torch.equal(rig.read(*range(8, 8 + page)), computed[:page]) if page else True
    assert rig.counted(ENGINE_TOKENS).get("lost") == (4 - page) * SIZE
    assert len(caplog.records) == 1


def test_a_service_that_fails_is_a_miss_and_warns_once_of_each_kind(
    rig: Rig, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    rig.compute(0, 1)
    names = hashes(2)
    transport.failing = Unavailable("gone")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert rig.side.exists(names) == 0
            assert rig.side.load(rig.of(names, 4, 5)) == [False, False]
            assert rig.side.store(rig.of(names, 0, 1)) == [False, False]
    said = [record.getMessage().partition(" failed")[0] for record in caplog.records]
    assert sorted(said) == ["load", "match", "store"]
    assert rig.counted(ENGINE_REQUESTS) == {"failed": 3}
    assert rig.counted(ENGINE_PAGES) == {"failed": 6}


def test_a_store_that_is_full_keeps_what_was_sent_before(rig: Rig, transport: Transport) -> None:
    rig.compute(0, 1, 2)
    names = hashes(3)
    rig.side.store(rig.of(names[:1], 0))
    transport.failing = None
    full = Busy("full")

    async def put(messages: Any, timeout: float) -> offload.PutResponse:
        await messages.aclose()
        raise full

    transport.put = put  # type: ignore[method-assign]
    assert rig.side.store(rig.of(names, 0, 1, 2)) == [True, False, False]
    assert rig.side.exists(names) == 1


def test_a_page_that_holds_nan_is_not_stored(rig: Rig, transport: Transport) -> None:
    assert rig.side.store(rig.of(hashes(1), 0)) == [False]
    assert not transport.pages


def test_a_load_ends_with_its_deadline(transport: Transport, tmp_path: Path) -> None:
    rig = Rig(transport, tmp_path, load_seconds=0.05)
    rig.compute(0)
    rig.side.store(rig.of(hashes(1), 0))
    transport.open.clear()
    assert rig.side.load(rig.of(hashes(1), 1)) == [False]
    assert rig.pool.computed(1).isnan().all()
    transport.open.set()
    rig.service.close()


@pytest.mark.parametrize("what", ["load", "store"])
def test_a_call_leaves_nothing_behind_at_the_engines_memory(
    what: str, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang gives pages to others once it has the answer: they would be read as this one's. Where
    the loop is stuck it has the answer all the same, and the call does nothing any more."""
    monkeypatch.setattr(_service, "GRACE_SECONDS", 0.0)
    rig = Rig(transport, tmp_path, load_seconds=0.05, offload_seconds=0.05)
    rig.compute(2)
    rig.side.store(rig.of(hashes(1), 2))
    puts, stuck = transport.puts, Stuck(rig.service)
    assert getattr(rig.side, what)(rig.of(hashes(1, first=what == "store"), 3)) == [False]
    others = rig.compute(3, seed=1)
    stuck.go_on()
    rig.service.close()
    assert torch.equal(rig.read(3), others)
    assert transport.puts == puts


def test_a_node_without_an_ingress_stores_nothing(transport: Transport, tmp_path: Path) -> None:
    rig = Rig(transport, tmp_path, stores=False)
    rig.compute(0)
    assert rig.side.store(rig.of(hashes(1), 0)) == [True]
    assert (transport.matches, transport.puts) == (0, 0)
    rig.service.close()


def test_once_closed_everything_is_a_miss(rig: Rig) -> None:
    rig.compute(0)
    names = hashes(1)
    rig.side.store(rig.of(names, 0))
    rig.service.close()
    assert rig.side.exists(names) == 0
    assert rig.side.load(rig.of(names, 1)) == [False]
    assert rig.side.store(rig.of(names, 0)) == [False]


def test_hashes_that_are_too_short_are_a_miss(rig: Rig) -> None:
    assert rig.side.exists([b"short"]) == 0
    assert rig.side.store(rig.of([b"short"], 0)) == [False]


def test_a_set_that_is_published_is_taken_over(transport: Transport, tmp_path: Path) -> None:
    """Pages stored before are found until they expire, beside those that are stored since."""
    asked = {"codec": "near"}
    rig = Rig(transport, tmp_path, coding=asked)
    assert rig.coding.waiting
    computed, names = rig.compute(0, 1, 2), hashes(3)
    rig.side.store(rig.of(names[:2], 0, 1))
    made = residual_set(LAYERS, HEADS, DIM)
    client = rig.service.client
    rig.service.wait(client.publish_dictionary(made, rig.base), PATIENCE_S)
    rig.service.wait(client._look(rig.coding), PATIENCE_S)
    assert not rig.coding.waiting
    assert rig.side.exists(names) == 2
    rig.side.store(rig.of(names[2:], 2))
    assert rig.side.exists(names) == 3
    assert rig.side.load(rig.of(names, 6, 7, 8)) == [True] * 3
    assert torch.equal(rig.read(6, 7), computed[:2])
    lossy = rig.read(8)
    assert lossy.isfinite().all()
    assert rig.side.exists(names, newest=True) == 2  # lossless pages are as good as computed ones
    assert not torch.equal(lossy, computed[2:])
    rig.service.close()


def test_concurrent_calls_of_several_threads(rig: Rig) -> None:
    """One of SGLang's threads stores while another loads."""
    computed, names = rig.compute(0, 1, 2, 3), hashes(4)
    rig.side.store(rig.of(names, 0, 1, 2, 3))
    found: list[list[bool]] = []
    threads = [
        threading.Thread(target=lambda: found.append(rig.side.load(rig.of(names, 4, 5, 6, 7)))),
        threading.Thread(target=lambda: found.append(rig.side.store(rig.of(names, 0, 1, 2, 3)))),
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(found) == 2, "both threads to end")
    for thread in threads:
        thread.join()
    assert found == [[True] * 4] * 2
    assert torch.equal(rig.read(4, 5, 6, 7), computed)


@pytest.mark.parametrize(
    ("recent", "stored", "promised"),
    [
        (1, 6, 6),
        (2, 6, 5),
        (SIZE, 6, 5),
        (SIZE + 1, 6, 5),
        (SIZE + 2, 6, 4),
        (99 * SIZE, 6, 0),
        (SIZE, 5, 5),
        (SIZE, 2, 2),
        (2 * SIZE, 5, 4),
    ],
)
def test_the_newest_tokens_of_a_prompt_are_computed(
    transport: Transport, tmp_path: Path, recent: int, stored: int, promised: int
) -> None:
    """With a lossy codec: of six pages that are a prompt's last, some are not promised."""
    rig = Rig(transport, tmp_path, coding={"codec": "near"}, recent_tokens=recent)
    made = residual_set(LAYERS, HEADS, DIM)
    client = rig.service.client
    rig.service.wait(client.publish_dictionary(made, rig.base), PATIENCE_S)
    rig.service.wait(client._look(rig.coding), PATIENCE_S)
    names = hashes(6)
    rig.compute(*range(6))
    rig.side.store(rig.of(names[:stored], *range(stored)))
    assert rig.side.exists(names) == stored
    assert rig.side.exists(names, newest=True) == promised
