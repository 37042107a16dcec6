"""The tier against the service in memory, without vLLM: questions, jobs, and what fails."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lexico_client import AsyncClient
from lexico_client.engines._coded_pages import CodedPages
from lexico_client.engines._counts import Counts
from lexico_client.engines._service import Service
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm.tier._config import TierConfig
from lexico_client.engines.vllm.tier._layout import Chunks
from lexico_client.engines.vllm.tier._side import Ended, Job, TierSide
from lexico_codec.geometry import Geometry
from lexico_codec.spec import CacheSpec, make_spec
from lexico_proto.errors import InternalError, Unavailable
from lexico_proto.metrics import ENGINE_PAGES, ENGINE_REQUESTS, ENGINE_TOKENS, Metrics
from tests.support.client_fixtures import PATIENT, flipped
from tests.support.residual_sets import residual_set
from tests.support.vllm_tiers import PrimaryTier, chunk_shape
from tests.support.waiting import PATIENCE_S, wait_until
from tests.unit.test_sglang_storage import Transport

GEOMETRY = Geometry(layers=3, kv_heads=2, head_dim=8, dtype="float32")
SIZE = 32
"""Tokens a chunk: two blocks."""


def keys(count: int, first: int = 0, group: int = 0) -> list[bytes]:
    """As vLLM has them: a hash and the number of a group."""
    end = group.to_bytes(4, "big")
    return [hashlib.sha256(bytes([first + i])).digest() + end for i in range(count)]


class Rig:
    """A tier over a primary tier of its own, and vLLM's steps."""

    def __init__(self, transport: Transport, folder: Path, **options: Any) -> None:
        layout = options.pop("layout", "heads-first")
        shape = chunk_shape(GEOMETRY, layout)
        self.primary, self.metrics = PrimaryTier(shape, 12), Metrics()
        self.base: CacheSpec = make_spec(
            weights=bytes(32),
            geometry=GEOMETRY,
            codec="lossless",
            page_tokens=SIZE,
            group_layers=2,
        )
        client = AsyncClient(transport=transport, timeouts=PATIENT, dictionaries_dir=folder)
        self.service = Service(client, "vllm-tier", LOG)
        asked = {"codec": "lossless", **options.pop("coding", {})}
        self.coding = self.service.wait(
            client.coding(self.base, known_positions=False, **asked), PATIENCE_S
        )
        patience = dict.fromkeys(("match_seconds", "load_seconds", "offload_seconds"), PATIENCE_S)
        given = {"reload": "h:1", "offload": "h:2", **patience, **options}
        self.side = TierSide(
            CodedPages(client, "vllm-tier", self.base, self.coding),
            Chunks(self.primary.rows, shape),
            self.service,
            Counts(LOG, self.metrics),
            TierConfig.of(given),
            chunk_tokens=SIZE,
            chunk_bytes=shape.bytes,
        )
        self._jobs = 0

    def compute(self, *slots: int, seed: int = 0) -> Tensor:
        """The engine computes chunks of its own, `[slots, layers, 2, tokens, heads, dim]`."""
        generator = torch.Generator().manual_seed(seed)
        made = torch.randn((len(slots), 3, 2, SIZE, 2, 8), generator=generator)
        for slot, each in zip(slots, made, strict=True):
            self.primary.compute(slot, each)
        return made

    def begin(self, names: Sequence[bytes], *slots: int, load: bool = False) -> int:
        """Submits a job."""
        self._jobs += 1
        (self.side.load if load else self.side.store)(Job(self._jobs, names, slots))
        return self._jobs

    def done(self) -> Ended:
        """The one job that is under way, once it has ended."""
        ended: list[Ended] = []

        def known() -> list[Ended]:
            ended.extend(self.side.ended())
            return ended

        wait_until(known, "a job to end")
        (found,) = ended
        assert self.side.ended() == []
        return found

    def store(self, names: Sequence[bytes], *slots: int) -> Ended:
        self.begin(names, *slots)
        return self.done()

    def load(self, names: Sequence[bytes], *slots: int) -> Ended:
        self.begin(names, *slots, load=True)
        return self.done()

    def step(self, names: Sequence[bytes], request: str = "a") -> list[bool | None]:
        """What the scheduler is told in one step."""
        found = [self.side.lookups.lookup(name, request) for name in names]
        self.side.lookups.ask()
        return found

    def found(self, names: Sequence[bytes], request: str = "a") -> list[bool | None]:
        """What it is told in the end."""
        said: list[bool | None] = [None]

        def told() -> bool:
            said[:] = self.step(names, request)
            return None not in said

        wait_until(told, "an answer")
        return said

    def read(self, *slots: int) -> Tensor:
        return torch.stack([self.primary.computed(slot) for slot in slots])

    def counted(self, family: Any) -> dict[str, int | float]:
        counts = self.metrics.snapshot().get(family, {})
        return {" ".join(values): number for values, number in counts.items() if number}


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def make(transport: Transport, tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def rig(**options: Any) -> Rig:
        made.append(Rig(transport, tmp_path, **options))
        return made[-1]

    yield rig
    transport.open.set()
    for each in made:
        each.service.close()


@pytest.fixture
def rig(make: Callable[..., Rig]) -> Rig:
    return make()


def test_what_one_engine_stored_another_loads(make: Callable[..., Rig]) -> None:
    """Of another layout, and with chunks elsewhere."""
    one, other = make(), make(layout="vllm-cpu")
    computed, names = one.compute(3, 9, 0), keys(3)
    ended = one.store(names, 3, 9, 0)
    assert (ended.success, ended.moved, set(ended.keys)) == (True, 3, set(names))
    assert other.found([*names, *keys(1, 100)]) == [True] * 3 + [False]
    ended = other.load(names, 1, 2, 8)
    assert (ended.success, ended.moved) == (True, 3)
    assert torch.equal(other.read(1, 2, 8), computed)
    assert other.primary.is_whole()
    other.side.lookups.finished("a")
    assert one.counted(ENGINE_PAGES) == {"sent": 3}
    assert other.counted(ENGINE_TOKENS) == {
        "asked": 4 * SIZE,
        "promised": 3 * SIZE,
        "loaded": 3 * SIZE,
    }
    assert other.counted(ENGINE_REQUESTS) == {"hit": 1}


def test_a_scheduler_never_waits_and_asks_again(rig: Rig, transport: Transport) -> None:
    """One question a step, of what is new; requests that want the same share the answer."""
    rig.compute(0)
    rig.store(keys(1), 0)
    transport.matches = 0
    assert rig.step(keys(2), "a") == [None, None]
    assert rig.found(keys(2), "b") == [True, False]
    assert rig.step(keys(2), "a") == [True, False]
    assert transport.matches == 1
    rig.side.lookups.finished("a")
    assert rig.step(keys(2), "b") == [True, False]
    rig.side.lookups.finished("b")
    assert rig.found(keys(1), "c") == [True]  # nothing is kept of requests that have ended
    assert transport.matches == 2


def test_an_answer_that_nobody_waits_for_is_dropped(rig: Rig) -> None:
    assert rig.step(keys(1), "a") == [None]
    rig.side.lookups.finished("a")
    rig.side.lookups.ask()
    assert rig.side.lookups._entries == {}
    assert rig.found(keys(1), "b") == [False]


def test_what_is_there_is_neither_read_nor_sent(rig: Rig, transport: Transport) -> None:
    computed, names = rig.compute(0, 1), keys(2)
    rig.store(names, 0, 1)
    ended = rig.store(names, 4, 5)  # NaN: to read it would be refused
    assert (ended.success, ended.moved) == (True, 0)
    assert transport.puts == 2
    assert rig.counted(ENGINE_PAGES) == {"sent": 2, "present": 2}
    rig.load(names, 6, 7)
    assert torch.equal(rig.read(6, 7), computed)


@pytest.mark.parametrize("chunk", range(3))
def test_a_damaged_chunk_is_a_miss_and_is_not_promised_again(
    make: Callable[..., Rig], transport: Transport, chunk: int
) -> None:
    """Those before it are used."""
    rig = make(concurrent_loads=1)
    computed, names = rig.compute(0, 1, 2), keys(3)
    for slot, name in enumerate(names):
        before = set(transport.pages)
        rig.store([name], slot)
        if slot == chunk:
            (damaged,) = set(transport.pages) - before
    frames = transport.pages[damaged]
    frames[-1] = flipped(frames[-1])
    assert rig.found(names) == [True] * 3
    ended = rig.load(names, 6, 7, 8)
    assert not ended.success
    assert list(ended.keys) == names[:chunk]
    assert torch.equal(rig.read(*range(6, 6 + chunk)), computed[:chunk]) if chunk else True
    assert rig.step(names) == [place < chunk for place in range(3)]
    assert rig.counted(ENGINE_TOKENS)["lost"] == (3 - chunk) * SIZE


def test_a_service_that_fails_is_a_miss_and_warns_once_of_each_kind(
    rig: Rig, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    rig.compute(0, 1)
    transport.failing = Unavailable("gone")
    with caplog.at_level(logging.WARNING):
        for request in "abc":
            assert rig.found(keys(2), request) == [False, False]
            assert not rig.load(keys(2), 4, 5).success
            assert not rig.store(keys(2), 0, 1).success
            rig.side.lookups.finished(request)
    said = [record.getMessage().partition(" failed")[0] for record in caplog.records]
    assert sorted(said) == ["load", "match", "store"]
    assert rig.counted(ENGINE_REQUESTS) == {"failed": 3}
    assert rig.counted(ENGINE_PAGES) == {"failed": 6}


def test_a_chunk_that_holds_nan_is_not_stored(rig: Rig, transport: Transport) -> None:
    assert not rig.store(keys(1), 0).success
    assert not transport.pages


def test_chunks_beyond_the_bound_are_not_stored(
    make: Callable[..., Rig], transport: Transport
) -> None:
    size = chunk_shape(GEOMETRY).bytes
    rig = make(staging_bytes=2 * size)
    rig.compute(0, 1, 2)
    assert not rig.store(keys(3), 0, 1, 2).success
    assert rig.store(keys(2), 0, 1).success
    assert rig.store(keys(1, 2), 2).success  # room is given back
    assert rig.counted(ENGINE_PAGES) == {"dropped": 3, "sent": 3}


def test_a_node_without_an_ingress_stores_nothing(
    make: Callable[..., Rig], transport: Transport
) -> None:
    rig = make(offload=None)
    rig.compute(0)
    ended = rig.store(keys(1), 0)
    assert (ended.success, ended.keys, ended.moved) == (True, (), 0)
    assert (transport.matches, transport.puts) == (0, 0)


def test_a_load_ends_with_its_deadline(make: Callable[..., Rig], transport: Transport) -> None:
    rig = make(load_seconds=0.05)
    rig.compute(0)
    rig.store(keys(1), 0)
    transport.open.clear()
    assert not rig.load(keys(1), 1).success
    assert rig.read(1).isnan().all()


def test_keys_that_name_no_chunk_are_a_miss(rig: Rig) -> None:
    """Of a hash that is not cryptographic, and of another group."""
    for name in (bytes(20), *keys(1, group=1)):
        assert rig.found([name]) == [False]
        assert not rig.store([name], 0).success
        assert not rig.load([name], 0).success


def test_a_drain_ends_when_every_job_has_and_then_nothing_is_found(rig: Rig) -> None:
    rig.compute(0, 1)
    rig.store(keys(1), 0)
    assert rig.found(keys(1)) == [True]
    first, second = rig.begin(keys(1), 4, load=True), rig.begin(keys(1, 1), 1)
    rig.side.drain()
    assert [each.number for each in rig.side.ended()] == [first, second]
    assert rig.side.ended() == []
    rig.side.lookups.finished("a")
    assert rig.found(keys(1), "b") == [False]
    assert not rig.load(keys(1), 5).success
    assert rig.store(keys(1), 0).moved == 1  # under another name


def test_once_closed_everything_is_a_miss(rig: Rig) -> None:
    rig.compute(0)
    rig.store(keys(1), 0)
    rig.side.close()
    assert rig.found(keys(1)) == [False]
    assert not rig.load(keys(1), 1).success
    assert not rig.store(keys(1), 0).success
    assert rig.side._held == 0


def test_a_close_ends_loads_and_gives_the_memory_back(
    make: Callable[..., Rig], transport: Transport
) -> None:
    rig = make(drain_seconds=0.05)
    rig.compute(0)
    rig.store(keys(1), 0)
    transport.open.clear()
    rig.begin(keys(1), 1, load=True)
    rig.side.close()
    assert not rig.done().success
    assert rig.read(1).isnan().all()


def test_memory_that_is_in_use_is_not_given_back(rig: Rig) -> None:
    """A loop that does not answer: vLLM keeps the primary tier then."""
    rig.begin(keys(1), 1, load=True)
    running = next(iter(rig.side._running.values()))
    assert running.call is not None
    wait_until(running.call.ended.is_set, "the job to end")
    running.call.ended.clear()
    with pytest.raises(InternalError, match="the primary tier is in use"):
        rig.side.close()
    running.call.ended.set()


def test_a_set_that_is_published_is_taken_over(make: Callable[..., Rig]) -> None:
    """Chunks stored before are found until they expire, beside those that are stored since."""
    rig = make(coding={"codec": "near"})
    computed, names = rig.compute(0, 1, 2), keys(3)
    rig.store(names[:2], 0, 1)
    made = residual_set(3, 2, 8)
    client = rig.service.client
    rig.service.wait(client.publish_dictionary(made, rig.base), PATIENCE_S)
    rig.service.wait(client._look(rig.coding), PATIENCE_S)
    assert not rig.coding.waiting
    assert rig.found(names) == [True, True, False]
    rig.store(names[2:], 2)
    assert rig.load(names, 6, 7, 8).success
    assert torch.equal(rig.read(6, 7), computed[:2])
    lossy = rig.read(8)
    assert lossy.isfinite().all()
    assert not torch.equal(lossy, computed[2:])


def test_the_view_of_the_primary_tier_can_be_released_after_the_end(
    transport: Transport, tmp_path: Path
) -> None:
    """vLLM unmaps it: an export that is left would make that fail."""
    rig = Rig(transport, tmp_path)
    primary: Any = np.zeros((2, chunk_shape(GEOMETRY).bytes), dtype=np.int8)
    view = memoryview(primary)
    chunks = Chunks(torch.from_numpy(np.asarray(view)), chunk_shape(GEOMETRY))
    rig.side._chunks = chunks
    del chunks
    rig.begin(keys(1), 1)
    rig.begin(keys(1), 0, load=True)
    rig.side.drain()
    rig.side.ended()
    rig.side.close()
    view.release()
