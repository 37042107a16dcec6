"""Slices against a real server: what ranks with a client each are told, and what is stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from lexico_client import AsyncClient, InMemoryTransport, PageOutcome, PutReport
from lexico_codec.put_messages import PageEnd, page_end_message, parse_put
from lexico_codec.slices import Slice
from lexico_codec.spec import CacheSpec
from lexico_proto import errors
from lexico_proto.metrics import CHECKSUM_FAILURES, RECEIVED_BYTES, SLICED_PAGES
from lexico_proto.v1 import offload_pb2 as pb
from tests.support.client_fixtures import (
    PAGE_TOKENS,
    PATIENT,
    TOKENS,
    Landing,
    random_cache,
    small_spec,
    views_of,
)
from tests.support.services import Services, running_services
from tests.support.sliced_pages import split
from tests.support.waiting import until

SPEC: Final = small_spec("lossless")
PAGES: Final = len(TOKENS) // PAGE_TOKENS
CACHE: Final = random_cache(SPEC, PAGES)
RANKS: Final = split(SPEC.geometry.layers, SPEC.geometry.kv_heads, 3, 2)
ONE: Final = b"one computation."
ALL: Final = {PageOutcome.STORED: PAGES}


@dataclass
class Ranks:
    """Clients of ranks, each with what it holds."""

    services: Services
    folder: Path
    token: str | None = None

    async def offload(
        self, held: Slice, assembly: bytes = ONE, spec: CacheSpec = SPEC, **options: Any
    ) -> PutReport:
        """Of one rank."""
        part = spec.held_by(held.layers, held.heads)
        own = CACHE[held.layers.start : held.layers.stop, :, :, held.heads.start : held.heads.stop]
        async with self.client() as client:
            return await client.offload(
                part, TOKENS, views_of(part, own), assembly=assembly, **options
            )

    def client(self) -> AsyncClient:
        return AsyncClient(
            reload=self.services.reload_address,
            offload=self.services.offload_address,
            token=self.token,
            dictionaries_dir=self.folder,
            timeouts=PATIENT,
        )

    async def loaded(self) -> int:
        """Pages that come back, which must be those that were sent."""
        landing = Landing(SPEC)
        async with self.client() as client:
            pages = (await client.load(SPEC, TOKENS, landing)).pages
        if pages:
            assert torch.equal(landing.cache, CACHE[:, :, : pages * PAGE_TOKENS])
        return pages


def outcomes(*reports: PutReport) -> dict[PageOutcome, int]:
    """How many pages had which."""
    found = [outcome for report in reports for outcome in report.pages]
    return {outcome: found.count(outcome) for outcome in set(found)}


@pytest.mark.parametrize("wait", ["committed", "received"])
async def test_ranks_that_send_at_once_store_every_page(tmp_path: Path, wait: str) -> None:
    async with running_services() as services:
        ranks = Ranks(services, tmp_path)
        reports = await asyncio.gather(*(ranks.offload(each, wait=wait) for each in RANKS))
        await services.ingress.close()
        assert await ranks.loaded() == PAGES
        others = PAGES * (len(RANKS) - 1)
        expected = {PageOutcome.RECEIVED: others} | (ALL if wait == "committed" else {})
        if wait == "received":
            expected = {PageOutcome.RECEIVED: others + PAGES}
        assert outcomes(*reports) == expected
        assert sum(report.bytes_sent for report in reports) == PAGES * SPEC.page_bytes
        assert services.counts(RECEIVED_BYTES) == {(): PAGES * SPEC.page_bytes}
        assert services.counts(SLICED_PAGES) == {("whole",): PAGES}
        assert services.ingress.budget.used == 0


async def test_a_rank_that_sends_again_does_no_harm(tmp_path: Path) -> None:
    """A retry, whose first answer was lost, and ranks with the same heads."""
    async with running_services() as services:
        ranks = Ranks(services, tmp_path)
        for each in RANKS[:-1] * 2:
            assert outcomes(await ranks.offload(each)) == {PageOutcome.RECEIVED: PAGES}
        assert await ranks.loaded() == 0
        assert outcomes(await ranks.offload(RANKS[-1])) == ALL
        assert outcomes(await ranks.offload(RANKS[0])) == {PageOutcome.PRESENT: PAGES}
        assert await ranks.loaded() == PAGES
        assert services.ingress.budget.used == 0


async def test_ranks_at_two_ingresses_store_nothing(tmp_path: Path) -> None:
    """Nor anything wrong: each waits for the slices that the other has."""
    async with running_services() as here, running_services(here.store) as there:
        for services, part in ((here, RANKS[::2]), (there, RANKS[1::2])):
            for each in part:
                await Ranks(services, tmp_path).offload(each)
        assert await Ranks(here, tmp_path).loaded() == 0
        for services in (here, there):
            assert services.ingress.partial.waiting == PAGES
            await services.ingress.close()
            assert services.counts(SLICED_PAGES) == {("drained",): PAGES}
            assert services.ingress.budget.used == 0


async def test_slices_of_tenants_and_of_salts_are_apart(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    names = ("red-token-0123456789", "blue-token-0123456789")
    tokens.write_text(f"red:{names[0]}\nblue:{names[1]}\n")
    async with running_services(token_file=tokens) as services:
        red, blue = (Ranks(services, tmp_path, name) for name in names)
        for each in RANKS[:-1]:
            await red.offload(each)
        assert outcomes(await blue.offload(RANKS[-1])) == {PageOutcome.RECEIVED: PAGES}
        salted = small_spec("lossless").held_by(range(5), range(3))
        salted = CacheSpec(**{**_fields(salted), "salt": b"mine"})
        report = await red.offload(RANKS[-1], spec=salted)
        assert outcomes(report) == {PageOutcome.RECEIVED: PAGES}
        assert (await red.loaded(), await blue.loaded()) == (0, 0)
        assert outcomes(await red.offload(RANKS[-1])) == ALL
        assert (await red.loaded(), await blue.loaded()) == (PAGES, 0)


def _fields(spec: CacheSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


async def test_another_body_of_a_slice_ends_the_page(tmp_path: Path) -> None:
    async with running_services() as services:
        ranks = Ranks(services, tmp_path)
        await ranks.offload(RANKS[0])
        part = SPEC.held_by(RANKS[0].layers, RANKS[0].heads)
        other = random_cache(part, PAGES, seed=9)
        async with ranks.client() as client:
            with pytest.raises(errors.InvalidInput, match="two different bodies"):
                await client.offload(part, TOKENS, views_of(part, other), assembly=ONE)
        assert services.counts(SLICED_PAGES) == {("refused",): 1}
        assert services.ingress.partial.waiting == PAGES - 1


async def test_a_slice_without_an_assembly_is_the_callers_fault(tmp_path: Path) -> None:
    async with running_services() as services:
        with pytest.raises(errors.InvalidInput, match="assembly"):
            await Ranks(services, tmp_path).offload(RANKS[0], assembly=b"short")


async def test_an_altered_slice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lexico_client._offload.page_end_message",
        lambda end: page_end_message(PageEnd(end.page, end.checksum ^ 1)),
    )
    async with running_services() as services:
        with pytest.raises(errors.StreamDamaged):
            await Ranks(services, tmp_path).offload(RANKS[0])
        assert services.counts(CHECKSUM_FAILURES) == {("upload",): 1}
        assert services.ingress.partial.waiting == 0
        await until(lambda: services.ingress.budget.used == 0, "all room to be free")


class EarlierRelease(InMemoryTransport):
    """Refuses a spec of a slice, as ingresses did."""

    async def put(self, messages: AsyncGenerator[bytes, None], timeout: float) -> pb.PutResponse:
        header = parse_put(await anext(messages))
        await messages.aclose()
        assert isinstance(header, pb.PutHeader)
        shard, geometry = header.spec.shard, header.spec.geometry
        assert (shard.total_heads, geometry.kv_heads) == (3, 1)
        raise errors.Unsupported("a slice of a model, 2 of 5 layers and 1 of 3 KV heads")


async def test_an_earlier_ingress_is_to_be_upgraded(tmp_path: Path) -> None:
    held = RANKS[0]
    part = SPEC.held_by(held.layers, held.heads)
    async with AsyncClient(
        transport=EarlierRelease(), dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        with pytest.raises(errors.Unsupported, match="upgrade it"):
            await client.offload(
                part, TOKENS, views_of(part, random_cache(part, PAGES)), assembly=ONE
            )


async def test_the_service_in_memory_puts_slices_together(tmp_path: Path) -> None:
    transport = InMemoryTransport()
    async with AsyncClient(
        transport=transport, dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        for held in RANKS:
            part = SPEC.held_by(held.layers, held.heads)
            layers, heads = held.layers, held.heads
            own = CACHE[layers.start : layers.stop, :, :, heads.start : heads.stop]
            report = await client.offload(part, TOKENS, views_of(part, own), assembly=ONE)
        assert outcomes(report) == ALL
        landing = Landing(SPEC)
        assert (await client.load(SPEC, TOKENS, landing)).pages == PAGES
        assert torch.equal(landing.cache, CACHE)
        assert not transport._sliced
