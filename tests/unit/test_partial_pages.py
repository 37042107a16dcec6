"""Slices at an ingress: what is put together, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexico_codec.codecs.raw import RawCodec
from lexico_codec.slices import Slice
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import InvalidInput, StreamTruncated, UnknownDictionary
from lexico_proto.metrics import PAGES, SLICED_BYTES, SLICED_WAITING
from lexico_worker.page_encoder import Outcome
from tests.support.slice_ingress import (
    BLUE,
    HALVES,
    HEADS,
    LAYERS,
    ONE,
    OTHER,
    PAGE_BYTES,
    RED,
    SPEC,
    Rig,
    outcomes,
)
from tests.support.sliced_pages import grids, whole_page
from tests.support.waiting import PATIENCE_S, until


@settings(max_examples=20)
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


async def test_an_encoder_that_fails_is_told_of_to_who_completed_the_page(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    rig.encoders.failing = UnknownDictionary("no such set")
    assert outcomes(await rig.put(HALVES[0])) == [None]
    with pytest.raises(UnknownDictionary):
        await rig.put(HALVES[1])
    await rig.ingress.close()
    assert "page lost reason=unknown-dictionary" in caplog.text
    await rig.all_free()
    rig.encoders.failing = None
    for each in HALVES:
        await rig.put(each)
    assert list(rig.encoders.pages) == [(RED, 0)]


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
