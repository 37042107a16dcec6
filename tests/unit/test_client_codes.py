"""Pages as codes: what `read_group` proves, and what a receiver of codes is promised."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lexico_client import AsyncClient, CodesReceiver, InMemoryTransport
from lexico_codec.codecs.sparse import GroupCodes
from lexico_codec.kernels.pursuit.coding import reconstruct
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group, encode_group, read_group
from lexico_codec.spec import CacheSpec
from lexico_proto import errors
from tests.support.client_fixtures import (
    PAGE_TOKENS,
    PATIENT,
    TOKENS,
    Landing,
    flipped,
    random_cache,
    small_dictionary,
    small_spec,
    views_of,
)
from tests.support.waiting import PATIENCE_S, settle, until

CPU = torch.device("cpu")
DICTIONARY = small_dictionary()
SPEC = small_spec("lexico", dictionary=DICTIONARY.digest)
KEYS = page_keys(SPEC, TOKENS)
PLACES = [(page, group) for group in range(3) for page in range(4)]  # as frames come


def dense(spec: CacheSpec, group: int, codes: GroupCodes) -> Tensor:
    """The group that codes stand for, `spec.group_shape(group)`."""
    layers, _, _, heads, dim = spec.group_shape(group)
    rest = reconstruct(codes.codes, codes.atoms).view(layers, 2, -1, heads, dim)
    return torch.cat([codes.sinks, rest.to(codes.sinks.dtype)], 2)


# The group


def frame_of(page: int, group: int, spec: CacheSpec = SPEC) -> bytes:
    tensor = views_of(spec, random_cache(spec, 4))(page, group).contiguous()
    return bytes(encode_group(spec, KEYS[page], page, group, tensor, DICTIONARY))


@pytest.mark.parametrize(("page", "group"), PLACES)
def test_codes_stand_for_what_is_decoded(page: int, group: int) -> None:
    frame = frame_of(page, group)
    codes = read_group(SPEC, KEYS[page], page, group, frame, DICTIONARY)
    out = torch.empty(SPEC.group_shape(group), dtype=torch.float16)
    decode_group(SPEC, KEYS[page], page, group, frame, out, DICTIONARY)
    assert codes.sinks.shape[2] == (4 if page == 0 else 0)
    assert codes.kv_heads == SPEC.geometry.kv_heads
    assert torch.equal(dense(SPEC, group, codes), out)


def test_nothing_is_read_from_a_frame_that_is_not_the_one() -> None:
    frame = frame_of(1, 0)
    for damaged in (flipped(frame), frame[:-1], frame + b"x", b""):
        with pytest.raises(errors.DamagedFrame):
            read_group(SPEC, KEYS[1], 1, 0, damaged, DICTIONARY)
    for other in (None, small_dictionary(seed=1)):
        with pytest.raises(errors.FrameMismatch, match="dictionary"):
            read_group(SPEC, KEYS[1], 1, 0, frame, other)
    for page, group in ((2, 0), (1, 1)):
        with pytest.raises(errors.FrameMismatch):
            read_group(SPEC, KEYS[page], page, group, frame, DICTIONARY)
    with pytest.raises(errors.FrameMismatch):
        read_group(replace(SPEC, page_tokens=9), KEYS[1], 1, 0, frame, DICTIONARY)
    with pytest.raises(errors.InvalidInput, match="no group 3"):
        read_group(SPEC, KEYS[1], 1, 3, frame, DICTIONARY)


def test_raw_has_no_codes() -> None:
    spec = small_spec("raw")
    with pytest.raises(errors.Unsupported, match="codec raw keeps no codes"):
        read_group(spec, KEYS[1], 1, 0, frame_of(1, 0, spec))


# The receiver


@dataclass
class Receivers:
    """A target that takes codes, and writes down what it got."""

    got: dict[tuple[int, int], GroupCodes] = field(default_factory=dict)
    order: list[tuple[int, int]] = field(default_factory=list)
    error: Exception | None = None
    inside: threading.Event = field(default_factory=threading.Event)
    release: threading.Event | None = None

    def __call__(self, pages: int) -> Any:
        return lambda page, group: One(self, (page, group))


@dataclass
class One:
    """The receiver of one group."""

    all: Receivers
    place: tuple[int, int]
    device: torch.device = CPU

    def accept(self, codes: GroupCodes) -> None:
        self.all.inside.set()
        if self.all.release is not None:
            self.all.release.wait(PATIENCE_S)
        if self.all.error is not None:
            raise self.all.error
        self.all.order.append(self.place)
        self.all.got[self.place] = codes


@pytest.fixture
def memory() -> InMemoryTransport:
    return InMemoryTransport()


@pytest.fixture
async def client(memory: InMemoryTransport, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(transport=memory, dictionaries_dir=tmp_path, timeouts=PATIENT) as client:
        await client.register_dictionary(DICTIONARY)
        await client.offload(SPEC, TOKENS, views_of(SPEC, random_cache(SPEC, 4)))
        yield client


def test_a_receiver_is_known_by_its_form() -> None:
    assert isinstance(One(Receivers(), (0, 0)), CodesReceiver)
    assert not isinstance(torch.zeros(1), CodesReceiver)


async def test_every_group_of_every_page_once(client: AsyncClient) -> None:
    receivers, landing = Receivers(), Landing(SPEC)
    loaded = await client.load(SPEC, TOKENS, receivers)
    assert (loaded.pages, loaded.tokens, loaded.reason) == (4, 4 * PAGE_TOKENS, None)
    assert loaded.seconds.decode > 0
    assert receivers.order == PLACES
    await client.load(SPEC, TOKENS, landing)
    for page, group in PLACES:
        expected = views_of(SPEC, landing.cache)(page, group)
        assert torch.equal(dense(SPEC, group, receivers.got[page, group]), expected)


async def test_tensors_and_receivers_side_by_side(client: AsyncClient) -> None:
    receivers, landing, whole = Receivers(), Landing(SPEC), Landing(SPEC)

    def target(pages: int) -> Any:
        codes, tensors = receivers(pages), landing(pages)
        return lambda page, group: (codes if group == 1 else tensors)(page, group)

    assert (await client.load(SPEC, TOKENS, target)).pages == 4
    assert receivers.order == [(page, 1) for page in range(4)]
    await client.load(SPEC, TOKENS, whole)
    for page, group in PLACES:
        if group != 1:
            ours, theirs = (views_of(SPEC, each.cache)(page, group) for each in (landing, whole))
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("page", "group"), [(0, 0), (2, 1), (3, 2)])
async def test_a_damaged_frame_ends_the_prefix(
    client: AsyncClient, memory: InMemoryTransport, page: int, group: int
) -> None:
    frames, receivers = memory.pages[KEYS[page]], Receivers()
    frames[group] = flipped(frames[group])
    loaded = await client.load(SPEC, TOKENS, receivers)
    assert (loaded.pages, type(loaded.reason)) == (page, errors.DamagedFrame)
    assert (page, group) not in receivers.got
    assert all((good, each) in receivers.got for good in range(page) for each in range(3))


async def test_what_the_receiver_raises_is_raised(client: AsyncClient) -> None:
    for error in (ZeroDivisionError("mine"), errors.DamagedFrame("mine")):
        with pytest.raises(type(error), match="mine"):
            await client.load(SPEC, TOKENS, Receivers(error=error))

    class Nowhere(One):
        @property
        def device(self) -> torch.device:
            raise LookupError("no device")

        @device.setter
        def device(self, value: torch.device) -> None: ...

    with pytest.raises(LookupError, match="no device"):
        await client.load(
            SPEC, TOKENS, lambda pages: lambda page, group: Nowhere(Receivers(), (0, 0))
        )


async def test_a_codec_without_codes_is_the_callers_fault(client: AsyncClient) -> None:
    spec, receivers = small_spec("raw"), Receivers()
    await client.offload(spec, TOKENS, views_of(spec, random_cache(spec, 4)))
    with pytest.raises(errors.Unsupported, match="codec raw keeps no codes"):
        await client.load(spec, TOKENS, receivers)
    assert receivers.order == []


async def test_a_codec_that_breaks_is_a_miss(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("codec defect")

    monkeypatch.setattr("lexico_client._load.read_group", broken)
    loaded = await client.load(SPEC, TOKENS, Receivers())
    assert (loaded.tokens, type(loaded.reason)) == (0, errors.InternalError)


async def test_a_cancelled_load_leaves_no_thread_in_the_receiver(client: AsyncClient) -> None:
    receivers = Receivers(release=threading.Event())
    task = asyncio.create_task(client.load(SPEC, TOKENS, receivers))
    await until(receivers.inside.is_set, "a thread in the receiver")
    task.cancel()
    await settle()
    assert not task.done()
    receivers.release.set()  # type: ignore[union-attr]
    with pytest.raises(asyncio.CancelledError):
        await task
    assert receivers.order == [(0, 0)]
