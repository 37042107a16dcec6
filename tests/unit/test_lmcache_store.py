"""Look-ups, loads and stores of objects, against the service in memory, without LMCache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lexico_client import AsyncClient, InMemoryTransport
from lexico_client.engines._counts import Counts
from lexico_client.engines.lmcache._config import AdapterConfig
from lexico_client.engines.lmcache._log import LOG
from lexico_client.engines.lmcache._pages import Pages
from lexico_client.engines.lmcache._store import ObjectStore
from lexico_proto.errors import ConfigurationError, Unavailable
from lexico_proto.metrics import (
    ENGINE_PAGES,
    ENGINE_REQUESTS,
    ENGINE_STAGED,
    ENGINE_TOKENS,
    Family,
    Metrics,
)
from lexico_proto.v1 import offload_pb2 as offload
from lexico_proto.v1 import reload_pb2 as reload
from tests.support.client_fixtures import PATIENT, flipped
from tests.support.lmcache_fakes import (
    BLOCK_TOKENS,
    HEAD_DIM,
    HEADS,
    LAYERS,
    LOCKS,
    OBJECTS,
    TOKENS,
    Key,
    key_of,
    keys_first,
    page_of,
    side_by_side,
)
from tests.support.residual_sets import residual_set
from tests.support.saved_model import save_tiny
from tests.support.waiting import PATIENCE_S, skip_ahead, until

COUNT = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


class Transport(InMemoryTransport):
    """The service in memory, which fails as told and counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: Exception | None = None
        self.holding = False
        self.matches = self.gets = self.puts = 0

    async def match(self, request: reload.MatchRequest, timeout: float) -> reload.MatchResponse:
        self.matches += 1
        await self._as_told()
        return await super().match(request, timeout)

    async def get(
        self, request: reload.GetRequest, timeout: float
    ) -> AsyncGenerator[reload.GetResponse, None]:
        self.gets += 1
        await self._as_told()
        async for message in super().get(request, timeout):
            yield message

    async def put(
        self, messages: AsyncGenerator[bytes, None], timeout: float
    ) -> offload.PutResponse:
        self.puts += 1
        try:
            await self._as_told()
        except Exception:
            await messages.aclose()
            raise
        return await super().put(messages, timeout)

    async def _as_told(self) -> None:
        if self.failing is not None:
            raise self.failing
        await until(lambda: not self.holding, "the service to be let go on")


@dataclass
class Rig:
    """What an LMCache server would have."""

    store: ObjectStore
    transport: Transport
    metrics: Metrics
    keys: list[Key]

    def counted(self, family: Family) -> dict[str, float]:
        found = self.metrics.snapshot().get(family, {})
        return {" ".join(labels): number for labels, number in found.items() if number}

    async def find(self, shape: Any, dtype: torch.dtype = torch.float32) -> list[bool]:
        return await self.store.find(self.keys, {0: (shape, dtype)})


@asynccontextmanager
async def running(
    folder: Path, tmp_path: Path, transport: Transport | None = None, **settings: Any
) -> AsyncIterator[Rig]:
    transport = transport or Transport()
    patience = {f"{call}_seconds": PATIENCE_S for call in ("match", "load", "idle", "offload")}
    made = AdapterConfig.of({"reload": "127.0.0.1:1", **patience, **LOCKS, **settings})
    metrics = Metrics()
    client = AsyncClient(transport=transport, timeouts=PATIENT, dictionaries_dir=tmp_path)
    async with client:
        store = ObjectStore(Pages(made), client, made, Counts(LOG, metrics))
        keys = [key_of(str(folder), chunk) for chunk in range(COUNT)]
        yield Rig(store, transport, metrics, keys)


def objects(made: Any = keys_first, **shape: Any) -> list[Tensor]:
    return [made(page_of(seed, **shape)) for seed in range(COUNT)]


def empty(like: list[Tensor]) -> list[Tensor]:
    return [torch.full_like(each, float("nan")) for each in like]


@pytest.mark.parametrize("kind", OBJECTS)
async def test_what_one_server_stores_another_finds_and_loads(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    layout, made = OBJECTS[kind]
    given = objects(made, dtype=torch.bfloat16)
    settings: dict[str, Any] = {"layout": layout, "block_tokens": BLOCK_TOKENS}
    async with running(folder, tmp_path, **settings) as one:
        assert await one.find(given[0].shape, torch.bfloat16) == [False] * COUNT
        stored, size = await one.store.store(list(zip(one.keys[:3], given, strict=False)))
        assert stored
        assert 0 < size == sum(len(f) for frames in one.transport.pages.values() for f in frames)
        assert one.counted(ENGINE_PAGES) == {"sent": 3}
        transport = one.transport
    async with running(folder, tmp_path, transport, **settings) as other:
        transport.matches = 0
        assert await other.find(given[0].shape, torch.bfloat16) == [True] * 3 + [False] * 2
        assert transport.matches == 1
        into = empty(given)
        loaded = await other.store.load(list(zip(other.keys, into, strict=True)))
        assert loaded == [True] * 3 + [False] * 2
        assert (transport.matches, transport.gets) == (1, COUNT)
        for there, found in zip(given[:3], into, strict=False):
            assert torch.equal(there.view(torch.int16), found.view(torch.int16))
        assert other.counted(ENGINE_REQUESTS) == {"hit": 1}
        assert other.counted(ENGINE_TOKENS) == {
            "asked": COUNT * TOKENS,
            "promised": 3 * TOKENS,
            "loaded": 3 * TOKENS,
            "lost": 2 * TOKENS,
        }


@pytest.mark.parametrize("kind", OBJECTS)
async def test_bytes_of_caches_in_eight_bits(kind: str, folder: Path, tmp_path: Path) -> None:
    layout, made = OBJECTS[kind]
    settings: dict[str, Any] = {"layout": layout, "block_tokens": BLOCK_TOKENS}
    exact = [page_of(seed).to(torch.float8_e4m3fn) for seed in range(COUNT)]
    given = [made(page).view(torch.uint8) for page in exact]
    async with running(folder, tmp_path, **settings) as one:
        assert await one.find(given[0].shape, torch.uint8) == [False] * COUNT
        stored, _ = await one.store.store(list(zip(one.keys, given, strict=True)))
        assert not stored, "nobody said which type it is"
    async with running(folder, tmp_path, cache_dtype="float8_e4m3fn", **settings) as one:
        assert (await one.store.store(list(zip(one.keys, given, strict=True))))[0]
        assert await one.find(given[0].shape, torch.uint8) == [True] * COUNT
        into = [torch.zeros_like(each) for each in given]
        assert all(await one.store.load(list(zip(one.keys, into, strict=True))))
        assert all(map(torch.equal, into, given))


async def test_engines_with_different_layouts_share(folder: Path, tmp_path: Path) -> None:
    async with running(folder, tmp_path) as one:
        await one.store.store(list(zip(one.keys, objects(), strict=True)))
        transport = one.transport
    expected = objects(side_by_side)
    async with running(folder, tmp_path, transport, layout="side-by-side") as other:
        into = empty(expected)
        assert all(await other.store.load(list(zip(other.keys, into, strict=True))))
        assert all(map(torch.equal, into, expected))


async def test_what_is_there_is_not_sent_again(folder: Path, tmp_path: Path) -> None:
    async with running(folder, tmp_path) as rig:
        given = list(zip(rig.keys, objects(), strict=True))
        await rig.store.store(given[:2])
        assert (await rig.store.store(given))[0]
        assert rig.transport.puts == COUNT
        assert rig.counted(ENGINE_PAGES) == {"sent": COUNT, "present": 2}
        assert rig.counted(ENGINE_STAGED) == {}
        assert (rig.store.held_bytes, rig.store.stores_under_way) == (0, 0)


async def test_callers_with_another_salt_find_nothing(folder: Path, tmp_path: Path) -> None:
    async with running(folder, tmp_path) as rig:
        given = objects()
        salted = [key_of(str(folder), chunk, cache_salt="x") for chunk in range(COUNT)]
        await rig.store.store(list(zip(salted, given, strict=True)))
        assert await rig.find(given[0].shape) == [False] * COUNT
        layouts = {0: (given[0].shape, torch.float32)}
        assert all(await rig.store.find(salted, layouts))
        mixed = await rig.store.find([rig.keys[0], salted[0]], layouts)
        assert mixed == [False, True]


async def test_a_damaged_or_lost_object_is_a_miss_of_its_own(folder: Path, tmp_path: Path) -> None:
    async with running(folder, tmp_path) as rig:
        given = objects()
        await rig.store.store(list(zip(rig.keys, given, strict=True)))
        keys = list(rig.transport.pages)
        rig.transport.pages[keys[1]][-1] = flipped(rig.transport.pages[keys[1]][-1])
        del rig.transport.pages[keys[3]]
        into = empty(given)
        loaded = await rig.store.load(list(zip(rig.keys, into, strict=True)))
        assert sorted(loaded) == [False] * 2 + [True] * 3
        for there, came, found in zip(given, loaded, into, strict=True):
            assert not came or torch.equal(there, found)


async def test_a_service_that_fails_is_a_miss_and_one_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(folder, tmp_path) as rig:
        given = list(zip(rig.keys, objects(), strict=True))
        rig.transport.failing = Unavailable("gone")
        for _ in range(2):
            assert await rig.find(given[0][1].shape) == [False] * COUNT
            assert await rig.store.load(given) == [False] * COUNT
            assert await rig.store.store(given) == (False, 0)
        for what in ("match", "load", "store"):
            warned = [r for r in caplog.records if r.getMessage().startswith(f"{what} failed")]
            assert len(warned) == 1
        assert rig.counted(ENGINE_REQUESTS) == {"failed": 2}
        assert rig.counted(ENGINE_PAGES) == {"failed": 2 * COUNT}
        assert rig.counted(ENGINE_TOKENS)["lost"] == 2 * COUNT * TOKENS
        rig.transport.failing = None
        assert (await rig.store.store(given))[0]
        assert all(await rig.find(given[0][1].shape))


async def test_a_service_that_is_silent_costs_a_deadline(folder: Path, tmp_path: Path) -> None:
    short: dict[str, Any] = {"match_seconds": 0.05, "load_seconds": 0.05, "offload_seconds": 0.05}
    async with running(folder, tmp_path, **short) as rig:
        given = list(zip(rig.keys, objects(), strict=True))
        rig.transport.holding = True
        assert await rig.find(given[0][1].shape) == [False] * COUNT
        assert await rig.store.load(given) == [False] * COUNT
        assert await rig.store.store(given) == (False, 0)
        rig.transport.holding = False
        assert rig.store.held_bytes == 0


async def test_a_model_that_is_read_for_too_long_leaves_objects_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMCache's locks end behind the deadline, and others' objects lie there."""
    read = Pages.model

    loop = asyncio.get_running_loop()

    def late(self: Pages, name: str) -> Any:
        skip_ahead(loop=loop)
        return read(self, name)

    given = objects()[0]
    short: dict[str, Any] = {"load_seconds": 0.05, "offload_seconds": 0.05}
    async with running(folder, tmp_path, **short) as rig:
        monkeypatch.setattr(Pages, "model", late)
        monkeypatch.setattr(Pages, "knows", lambda self, name: False)
        for _ in range(3):
            assert await rig.store.store([(rig.keys[0], given)]) == (False, 0)
            assert await rig.store.load([(rig.keys[0], given)]) == [False]
        assert (rig.transport.matches, rig.transport.gets, rig.transport.puts) == (0, 0, 0)


async def test_what_waits_to_be_stored_is_bounded(folder: Path, tmp_path: Path) -> None:
    given = objects()
    async with running(folder, tmp_path, staging_bytes=3 * given[0].nbytes) as rig:
        named = list(zip(rig.keys, given, strict=True))
        assert await rig.store.store(named) == (False, 0)
        assert rig.counted(ENGINE_PAGES) == {"dropped": COUNT}
        assert (await rig.store.store(named[:3]))[0]


async def test_ranks_store_their_parts_without_loss_alone(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = objects(heads=1)
    keys = [key_of(str(folder), 0, kv_rank=2 << 24 | rank << 16) for rank in range(2)]
    async with running(folder, tmp_path) as rig:
        assert (await rig.store.store(list(zip(keys, part, strict=False))))[0]
        assert await rig.store.find(keys, {0: (part[0].shape, torch.float32)}) == [True] * 2
        into = empty(part[:2])
        assert all(await rig.store.load(list(zip(keys, into, strict=True))))
        assert all(map(torch.equal, into, part))
    async with running(folder, tmp_path, codec="balanced") as rig:
        assert await rig.store.store([(keys[0], part[0])]) == (False, 0)
        assert "give codec lossless" in caplog.text


async def test_a_lossy_codec_finds_positions(folder: Path, tmp_path: Path) -> None:
    free = residual_set(LAYERS, HEADS, HEAD_DIM)
    file = tmp_path / "free.safetensors"
    free.save(file)
    given = objects()
    settings: dict[str, Any] = {
        "codec": "near",
        "dictionary": str(file),
    }
    async with running(folder, tmp_path, **settings) as rig:
        named = list(zip(rig.keys, given, strict=True))
        assert (await rig.store.store(named))[0]
        into = empty(given)
        assert all(await rig.store.load(list(zip(rig.keys, into, strict=True))))
        for there, found in zip(given, into, strict=True):
            assert not torch.equal(there, found)
            assert (there - found).norm() < there.norm()


@pytest.mark.parametrize("given", ["none.safetensors", "broken.safetensors"])
async def test_a_set_that_cannot_be_read_is_named_at_the_start(
    folder: Path, tmp_path: Path, given: str
) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no set")
    wrong: dict[str, Any] = {"codec": "near", "dictionary": str(tmp_path / given)}
    with pytest.raises(ConfigurationError, match="adapter_params: dictionary: "):
        async with running(folder, tmp_path, **wrong):
            """It does not start."""


async def test_without_a_set_objects_may_be_refused(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transport, given = Transport(), objects()
    refusing: dict[str, Any] = {"codec": "near", "without_set": "refuse"}
    async with running(folder, tmp_path, transport, **refusing) as rig:
        assert await rig.store.store([(rig.keys[0], given[0])]) == (False, 0)
        assert await rig.find(given[0].shape) == [False] * COUNT
        assert "match failed" in caplog.text
        free = residual_set(LAYERS, HEADS, HEAD_DIM)
        page = rig.store._pages.page(rig.keys[0], given[0].shape, torch.float32)
        await rig.store._client.publish_dictionary(free, page.spec)
        assert (await rig.store.store([(rig.keys[0], given[0])]))[0]


async def test_objects_are_lossless_until_a_set_is_published(folder: Path, tmp_path: Path) -> None:
    transport, given = Transport(), objects()
    free = residual_set(LAYERS, HEADS, HEAD_DIM)
    settings: dict[str, Any] = {"codec": "near", "recent_tokens": 1}
    async with running(folder, tmp_path, transport, **settings) as rig:
        await rig.store.store(list(zip(rig.keys[:2], given, strict=False)))
        lossless = len(transport.pages)
        page = rig.store._pages.page(rig.keys[0], given[0].shape, torch.float32)
        await rig.store._client.publish_dictionary(free, page.spec)
    async with running(folder, tmp_path, transport, **settings) as rig:
        await rig.store.store([(rig.keys[2], given[2])])
        assert len(transport.pages) == lossless + 1
        # What was stored before the set came is found beside what came after.
        assert await rig.find(given[0].shape) == [True] * 3 + [False] * 2
        into = empty(given[:3])
        assert all(await rig.store.load(list(zip(rig.keys, into, strict=False))))
        assert list(map(torch.equal, into, given)) == [True, True, False]


async def test_objects_that_cannot_be_described_are_left_alone(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(folder, tmp_path) as rig:
        packed = objects(side_by_side)
        assert await rig.find(packed[0].shape) == [False] * COUNT
        assert await rig.store.find(rig.keys, {}) == [False] * COUNT
        named = list(zip(rig.keys, packed, strict=True))
        assert await rig.store.store(named) == (False, 0)
        assert await rig.store.load(named) == [False] * COUNT
        assert not rig.transport.pages
        assert "the setting `layout` is one of" in caplog.text
