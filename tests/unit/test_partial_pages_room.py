"""Room for slices at an ingress: bytes, quotas, and ranks that are ahead of the others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lexico_codec.slices import Slice
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import Busy, InvalidInput, QuotaExceeded
from lexico_services.offload.partial_pages import MIN_SLICE_ROOM
from lexico_services.policies import Policies
from lexico_store.scopes import tenant_scope
from tests.support.slice_ingress import (
    BLUE,
    HALVES,
    HEADS,
    LAYERS,
    OTHER,
    PAGE_BYTES,
    RED,
    SPEC,
    Rig,
    outcomes,
    stored,
)
from tests.support.waiting import lingering, settle, until


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
