"""Slices at an ingress: what is put together, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexico_codec.checksum import Checksum
from lexico_codec.keys import page_keys
from lexico_codec.pieces import Piece
from lexico_codec.put_messages import PageEnd
from lexico_codec.slices import Slice
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import Busy, InvalidInput, QuotaExceeded, StreamTruncated
from lexico_proto.metrics import PAGES, SLICED_BYTES, SLICED_PAGES, SLICED_WAITING, Metrics
from lexico_services.config import OffloadConfig
from lexico_services.offload.ingress import Ingress
from lexico_services.offload.partial_pages import MIN_SLICE_ROOM
from lexico_services.offload.upload import Report, Upload
from lexico_services.policies import Policies
from lexico_services.telemetry.gauges import watch_ingress
from lexico_store.scopes import tenant_scope
from lexico_worker.page_encoder import Outcome, PageDone, PageJob
from tests.support.client_fixtures import small_spec
from tests.support.sliced_pages import bodies_of, grids, split, whole_page
from tests.support.waiting import PATIENCE_S, lingering, settle, until

SPEC: Final = small_spec("raw")
PAGE_BYTES: Final = SPEC.page_bytes
LAYERS, HEADS = SPEC.geometry.layers, SPEC.geometry.kv_heads
RED, BLUE = tenant_scope("red"), tenant_scope("blue")
HALVES: Final = split(LAYERS, HEADS, 1, 2)
ONE: Final = b"the first engine's"
OTHER: Final = b"another engine's"


class Encoders:
    """Keep what they are given, once they are let go."""

    def __init__(self) -> None:
        self.pages: dict[tuple[bytes, int], bytes] = {}
        self.jobs: list[PageJob] = []
        self.go = asyncio.Event()
        self.go.set()

    async def running(self) -> int | None:
        return None

    async def place(self, page: list[Piece]) -> Any:
        return b"".join(piece.tobytes() for piece in page)

    async def encode(self, job: PageJob, placed: Any) -> PageDone:
        self.jobs.append(job)
        await self.go.wait()
        if self.pages.setdefault((job.scope, job.page), placed) is not placed:
            return PageDone(Outcome.PRESENT)
        return PageDone(Outcome.STORED, len(placed))


class Rig:
    """An ingress, and prompts of random pages."""

    def __init__(self, policies: Policies | None = None, **config: Any) -> None:
        self.encoders, self.metrics = Encoders(), Metrics()
        bounds = {"idle_s": PATIENCE_S, "slice_wait_s": PATIENCE_S, **config}
        self.ingress = Ingress(self.encoders, OffloadConfig(**bounds), self.metrics, policies)
        watch_ingress(self.metrics, self.ingress)

    async def put(
        self,
        held: Slice,
        pages: Sequence[int] = (0,),
        *,
        scope: bytes = RED,
        assembly: bytes = ONE,
        spec: CacheSpec = SPEC,
        seed: int = 0,
        cut: bool = False,
        wait_committed: bool = True,
    ) -> Report:
        """A Put of one rank. Page p has the bytes of seed + p.

        Args:
            cut: leaves out the last end.
        """
        ids = range(7, 7 + (pages[-1] + 1) * spec.page_tokens)
        keys = page_keys(spec, ids)
        part = spec.held_by(held.layers, held.heads)
        upload = Upload(scope, part, ids, pages, [keys[page] for page in pages], assembly=assembly)

        async def parts() -> AsyncIterator[memoryview | PageEnd]:
            for page in pages:
                body = bodies_of(spec, whole_page(spec, seed + page), held)
                checksum = Checksum()
                checksum.add(body)
                yield memoryview(body)
                await asyncio.sleep(0)
                if not (cut and page == pages[-1]):
                    yield PageEnd(page, checksum.value())

        return await self.ingress.put(upload, parts(), wait_committed=wait_committed)

    def ended(self) -> dict[str, int | float]:
        counts = self.metrics.snapshot().get(SLICED_PAGES, {})
        return {values[0]: number for values, number in counts.items() if number}

    def shown(self, family: Any) -> int | float:
        return self.metrics.snapshot()[family][()]  # type: ignore[return-value]

    async def all_free(self) -> None:
        def used() -> int:
            return self.ingress.budget.used

        await until(lambda: not used(), "all room to be free", used)
        assert not self.ingress.partial.waiting
        assert not self.ingress.partial._needed
        assert not self.ingress.partial._encoding
        assert not self.ingress._tenant_bytes._used


def outcomes(report: Report) -> list[Outcome | None]:
    return [None if done is None else done.outcome for done in report.pages.values()]


def stored(report: Report) -> set[int]:
    """The pages that a Put completed."""
    return {page for page, done in report.pages.items() if done is not None}


@settings(max_examples=30)
@given(data=st.data())
def test_pages_are_stored_whole_or_not_at_all(data: st.DataObject) -> None:
    """Any split, any order, repeats, losses, several tenants and computations: what is stored has
    every slice of one computation, and nothing is left behind."""
    held = data.draw(grids(LAYERS, HEADS))
    worlds = [(RED, ONE), (RED, OTHER), (BLUE, ONE)]
    puts = [(world, each) for world in worlds for each in held]
    lost = data.draw(st.sets(st.sampled_from(puts), max_size=2))
    sent = [put for put in puts if put not in lost]
    repeated = data.draw(st.lists(st.sampled_from(sent), max_size=3)) if sent else []
    order = data.draw(st.permutations(sent + repeated))
    together = data.draw(st.booleans())

    async def run() -> None:
        rig = Rig()
        calls = [
            rig.put(each, (0, 1), scope=scope, assembly=assembly, seed=scope[0])
            for (scope, assembly), each in order
        ]
        if together:
            await asyncio.gather(*calls)
        else:
            for call in calls:
                await call
        await rig.ingress.close()
        whole = {scope for scope, assembly in worlds if not _lacks(lost, (scope, assembly))}
        assert rig.encoders.pages == {
            (scope, page): whole_page(SPEC, scope[0] + page).tobytes()
            for scope in whole
            for page in (0, 1)
        }
        await rig.all_free()

    asyncio.run(run())


def _lacks(lost: Any, world: tuple[bytes, bytes]) -> bool:
    return any(each == world for each, _ in lost)


async def test_outcomes_are_those_of_each_rank() -> None:
    rig = Rig()
    first, second = HALVES
    assert outcomes(await rig.put(first, (0, 1))) == [None, None]
    assert rig.shown(SLICED_WAITING) == 2
    assert rig.shown(SLICED_BYTES) == rig.ingress.budget.used > 0
    assert outcomes(await rig.put(second, (1,))) == [Outcome.STORED]
    assert outcomes(await rig.put(second, (0, 1), assembly=OTHER)) == [None, None]
    assert outcomes(await rig.put(first, (0, 1), assembly=OTHER)) == [
        Outcome.STORED,
        Outcome.PRESENT,
    ]
    assert rig.ended() == {"whole": 3}
    await rig.ingress.close()
    assert rig.ended() == {"whole": 3, "drained": 1}
    assert rig.metrics.snapshot()[PAGES][("stored",)] == 2
    await rig.all_free()


async def test_a_slice_of_a_page_in_an_encoder_is_told_so() -> None:
    rig = Rig()
    rig.encoders.go.clear()
    await rig.put(HALVES[0])
    last = asyncio.create_task(rig.put(HALVES[1]))
    await until(lambda: rig.encoders.jobs, "a page in an encoder")
    assert outcomes(await rig.put(HALVES[0])) == [Outcome.IN_PROGRESS]
    rig.encoders.go.set()
    assert outcomes(await last) == [Outcome.STORED]
    await rig.all_free()


async def test_a_caller_that_goes_away_takes_no_page_of_others_along() -> None:
    rig = Rig()
    rig.encoders.go.clear()
    await rig.put(HALVES[0])
    last = asyncio.create_task(rig.put(HALVES[1]))
    await until(lambda: rig.encoders.jobs, "a page in an encoder")
    last.cancel()
    with pytest.raises(asyncio.CancelledError):
        await last
    assert rig.ingress.budget.used >= PAGE_BYTES
    rig.encoders.go.set()
    await rig.ingress.close()
    assert rig.encoders.pages == {(RED, 0): whole_page(SPEC).tobytes()}
    await rig.all_free()


async def test_who_does_not_wait_is_answered_before_the_page_is_stored() -> None:
    rig = Rig()
    rig.encoders.go.clear()
    for each in HALVES:
        assert outcomes(await rig.put(each, wait_committed=False)) == [None]
    rig.encoders.go.set()
    await rig.ingress.close()
    assert len(rig.encoders.pages) == 1
    await rig.all_free()


async def test_missing_slices_are_waited_for_so_long(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(slice_wait_s=0.05)
    with caplog.at_level(logging.WARNING):
        await rig.put(HALVES[0], (0, 1, 2))
        await until(lambda: rig.ended() == {"expired": 3}, "three pages to be given up", rig.ended)
    await rig.all_free()
    assert len(caplog.records) == 1
    assert "slices-missing" in caplog.text
    # What comes too late is of a page that lacks the others; a new computation is whole.
    rig.ingress.partial._wait_s = PATIENCE_S
    assert outcomes(await rig.put(HALVES[1])) == [None]
    assert not rig.encoders.pages
    assert outcomes(await rig.put(HALVES[0])) == [Outcome.STORED]
    await rig.all_free()


@pytest.mark.parametrize("overlapping", [False, True])
async def test_slices_that_do_not_fit_end_the_page(overlapping: bool) -> None:
    rig = Rig()
    await rig.put(HALVES[0], (0, 1))
    other = Slice(range(LAYERS - 1), range(HEADS)) if overlapping else HALVES[0]
    with pytest.raises(InvalidInput, match="overlap" if overlapping else "two different bodies"):
        await rig.put(other, (0, 1), seed=5)
    assert rig.ended() == {"refused": 1}
    assert outcomes(await rig.put(HALVES[1], (0, 1))) == [None, Outcome.STORED]
    assert list(rig.encoders.pages) == [(RED, 1)]
    await rig.ingress.close()
    await rig.all_free()


async def test_a_slice_that_is_cut_off_leaves_nothing() -> None:
    rig = Rig()
    with pytest.raises(StreamTruncated):
        await rig.put(HALVES[0], cut=True)
    await rig.all_free()
    assert rig.ended() == {}
    await rig.put(HALVES[0])
    with pytest.raises(StreamTruncated):
        await rig.put(HALVES[1], cut=True)
    assert outcomes(await rig.put(HALVES[1])) == [Outcome.STORED]
    await rig.all_free()


async def test_slices_without_an_assembly_are_refused() -> None:
    rig = Rig()
    with pytest.raises(InvalidInput, match="assembly"):
        await rig.put(HALVES[0], assembly=b"")
    await rig.all_free()


async def test_element_types_and_places_are_apart() -> None:
    """Of a lossy codec all element types have one namespace."""
    from dataclasses import replace

    from lexico_codec.codecs.raw import RawCodec

    rig = Rig()
    whole = {
        dtype: CacheSpec(bytes(32), replace(SPEC.geometry, dtype=dtype), RawCodec(), page_tokens=8)
        for dtype in ("float16", "bfloat16")
    }
    await rig.put(HALVES[0], spec=whole["float16"])
    await rig.put(HALVES[1], spec=whole["bfloat16"])
    assert not rig.encoders.pages
    assert rig.ingress.partial.waiting == 2
    await rig.ingress.close()
    await rig.all_free()


async def test_a_page_lives_from_when_its_first_slice_began() -> None:
    rig = Rig()
    await rig.put(HALVES[0])
    (opened,) = rig.ingress.partial._open.values()
    await rig.put(HALVES[1], (0,))
    (job,) = rig.encoders.jobs
    assert job.began_us == opened.began_us
    assert job.spec == SPEC
    assert len(job.sequence) == 1


async def test_a_rank_ahead_waits_for_room_and_does_not_shut_others_out() -> None:
    rig = Rig(max_inflight_bytes=8 * PAGE_BYTES)
    ahead = asyncio.create_task(rig.put(HALVES[0], range(12)))
    await until(lambda: rig.ingress.partial.waiting == 4, "half of all room to be taken")
    await lingering()
    assert rig.ingress.partial.waiting == 4
    assert not ahead.done()
    completed = stored(await rig.put(HALVES[1], range(12)))
    assert completed ^ stored(await ahead) == set(range(12))
    assert len(rig.encoders.pages) == 12
    assert rig.ingress.budget.peak <= 8 * PAGE_BYTES
    await rig.all_free()


async def test_room_that_does_not_come_is_busy() -> None:
    rig = Rig(max_inflight_bytes=4 * PAGE_BYTES)
    await rig.put(HALVES[0], range(2))
    rig.ingress.partial._wait_s = 0.05
    with pytest.raises(Busy, match="wait for slices of other ranks"):
        await rig.put(HALVES[0], range(3), assembly=OTHER)
    assert rig.ingress.partial.waiting == 2
    await rig.ingress.close()
    await rig.all_free()


async def test_room_of_pages_that_expire_is_for_those_that_wait() -> None:
    rig = Rig(max_inflight_bytes=4 * PAGE_BYTES, slice_wait_s=0.1)
    await rig.put(HALVES[0], range(2))
    await rig.put(HALVES[0], (0,), assembly=OTHER)
    assert rig.ended()["expired"] >= 1
    await rig.ingress.close()
    await rig.all_free()


async def test_whole_pages_have_the_rest_of_the_room() -> None:
    rig = Rig(max_inflight_bytes=2 * PAGE_BYTES)
    rig.encoders.go.clear()
    full = [
        asyncio.create_task(rig.put(Slice(range(LAYERS), range(HEADS)), scope=each))
        for each in (RED, BLUE)
    ]
    await until(lambda: len(rig.encoders.jobs) == 2, "all room to be taken")
    with pytest.raises(Busy):
        await rig.put(HALVES[0])
    rig.encoders.go.set()
    await asyncio.gather(*full)
    await rig.all_free()


async def test_a_page_over_all_room_is_refused_at_once() -> None:
    rig = Rig(max_inflight_bytes=PAGE_BYTES - 1)
    with pytest.raises(InvalidInput, match="max_inflight_bytes"):
        await rig.put(HALVES[0])
    await rig.all_free()


async def test_a_tenants_quota_counts_its_slices(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(
        f"[tenants.red]\nmax_inflight_bytes = {2 * PAGE_BYTES + 1}\n"
        f"[tenants.blue]\nmax_inflight_bytes = {PAGE_BYTES - 1}\n"
    )
    rig = Rig(Policies(file))
    with pytest.raises(QuotaExceeded, match="over the tenant's"):
        await rig.put(HALVES[0], scope=BLUE)
    ahead = asyncio.create_task(rig.put(HALVES[0], range(5)))
    await until(lambda: rig.ingress.partial.waiting == 2, "the quota to be taken")
    await lingering()
    assert rig.ingress.partial.waiting == 2
    other = tenant_scope("another")
    assert outcomes(await rig.put(HALVES[0], range(5), scope=other)) == [None] * 5
    completed = stored(await rig.put(HALVES[1], range(5)))
    assert completed ^ stored(await ahead) == set(range(5))
    await rig.ingress.close()
    await rig.all_free()


async def test_the_smallest_slices_are_counted_with_what_they_take() -> None:
    tiny = CacheSpec(bytes(32), SPEC.geometry, SPEC.codec, page_tokens=1)
    rig = Rig()
    await rig.put(Slice(range(0, 1), range(0, 1)), spec=tiny)
    assert rig.ingress.budget.used == MIN_SLICE_ROOM
    await rig.ingress.close()
    await rig.all_free()


async def test_a_drain_ends_what_waits_for_room() -> None:
    """Calls are ended before the ingress is closed: they leave nothing either."""
    rig = Rig(max_inflight_bytes=2 * PAGE_BYTES)
    await rig.put(HALVES[0])
    waiting = asyncio.create_task(rig.put(HALVES[0], assembly=OTHER))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await rig.ingress.close()
    assert rig.ended() == {"drained": 1}
    await rig.all_free()


def test_random_pages_differ() -> None:
    assert not np.array_equal(whole_page(SPEC, 0), whole_page(SPEC, 1))
