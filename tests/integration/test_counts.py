"""What servers and clients count, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from lexico_client import AsyncClient, _load
from lexico_codec.pieces import Piece
from lexico_proto import errors
from lexico_proto.metrics import (
    CALLS,
    CHECKSUM_FAILURES,
    CLIENT_BYTES,
    CLIENT_CALLS,
    CLIENT_MISSES,
    MISSES,
    PAGE_FAILURES,
    PAGES,
    RECEIVED_BYTES,
    SENT_BYTES,
    SENT_PAGES,
    SETS_REFUSED,
    STORED_BYTES,
    Family,
    Metrics,
)
from lexico_worker.page_encoder import PageDone, PageJob
from tests.support.client_fixtures import PATIENT
from tests.support.dictionaries import random_set
from tests.support.newer_frames import of_version
from tests.support.reload_pages import registration, stream_of
from tests.support.services import (
    Prompt,
    Services,
    page_end,
    prompt,
    running_services,
    stream,
)
from tests.support.waiting import PATIENCE_S, until


def client_of(services: Services, folder: Path, metrics: Metrics) -> AsyncClient:
    return AsyncClient(
        reload=services.reload_address,
        offload=services.offload_address,
        dictionaries_dir=folder,
        timeouts=PATIENT,
        metrics=metrics,
    )


def target(made: Prompt) -> Any:
    return lambda _: lambda _, group: torch.empty(made.spec.group_shape(group))


def counts(metrics: Metrics, family: Family) -> dict[tuple[str, ...], int | float]:
    """Zeros left out."""
    return {values: n for values, n in metrics.snapshot().get(family, {}).items() if n}


async def test_both_sides_count_calls_pages_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_load, "_TRAILER_SECONDS", PATIENCE_S)  # so that Get ends well
    made, mine = prompt(), Metrics()
    raw = 2 * made.spec.page_bytes
    async with running_services() as services:
        async with client_of(services, tmp_path, mine) as client:
            report = await client.offload(
                made.spec, made.token_ids, lambda page, group: made.pages[page][group]
            )
            loaded = await client.load(made.spec, made.token_ids, target(made))
        assert loaded.pages == 2
        await until(lambda: services.counts(CALLS).get(("get", "ok")), "the end of Get")
        assert services.counts(CALLS) == {("match", "ok"): 2, ("put", "ok"): 1, ("get", "ok"): 1}
        assert services.counts(PAGES) == {("stored",): 2}
        assert services.counts(RECEIVED_BYTES) == {(): raw}
        assert services.counts(STORED_BYTES) == {(): report.bytes_stored}
        assert services.counts(SENT_BYTES) == {(): loaded.bytes_received}
        assert services.counts(SENT_PAGES) == {(): loaded.pages}
        assert services.counts(MISSES) == {}
    assert counts(mine, CLIENT_CALLS) == {("match", "ok"): 2, ("put", "ok"): 1, ("get", "ok"): 1}
    assert counts(mine, CLIENT_BYTES) == {("sent",): raw, ("received",): loaded.bytes_received}
    assert counts(mine, CLIENT_MISSES) == {}


CHANGES: dict[str, Callable[[bytes], bytes | None]] = {
    "absent": lambda frame: None,
    "damaged": lambda frame: frame[:-1] + bytes([frame[-1] ^ 1]),
    "newer": lambda frame: of_version(frame, 3),
}


@pytest.mark.parametrize("reason", CHANGES)
async def test_misses_have_reasons(reason: str, tmp_path: Path) -> None:
    made, mine = prompt(pages=1), Metrics()
    async with running_services() as services:
        async with client_of(services, tmp_path, mine) as client:
            missed = await client.load(made.spec, made.token_ids, target(made))
            assert (missed.pages, missed.reason) == (0, None)
            await client.offload(
                made.spec, made.token_ids, lambda page, group: made.pages[page][group]
            )
            read, change = services.store.read_frames, CHANGES[reason]
            services.store.read_frames = lambda *asked: [  # type: ignore[method-assign]
                change(frame) if isinstance(frame, bytes) else None for frame in read(*asked)
            ]
            loaded = await client.load(made.spec, made.token_ids, target(made))
        assert loaded.pages == 0
        assert services.counts(MISSES) == {(reason,): 1}
        damaged = {("store",): 1} if reason == "damaged" else {}
        assert services.counts(CHECKSUM_FAILURES) == damaged
    told = {"absent": "unavailable", "damaged": "damaged-frame", "newer": "newer-frame"}[reason]
    assert counts(mine, CLIENT_MISSES) == {("absent",): 1, (told,): 1}


class Failing:
    """Encoders that fail with the first page once they have the second, and sit on that."""

    def __init__(self) -> None:
        self._second = asyncio.Event()

    async def running(self) -> int | None:
        return None

    async def place(self, page: list[Piece]) -> Any:
        return None

    async def encode(self, job: PageJob, placed: Any) -> PageDone:
        if job.page == 0:
            await self._second.wait()
            raise errors.StoreUnavailable("nobody there")
        self._second.set()
        await asyncio.sleep(PATIENCE_S)
        raise AssertionError


async def test_pages_that_fail_or_are_given_up(tmp_path: Path) -> None:
    made, mine = prompt(), Metrics()
    async with running_services(encoders=Failing()) as services:
        async with client_of(services, tmp_path, mine) as client:
            with pytest.raises(errors.StoreUnavailable):
                await client._transport.put(_messages(made), PATIENCE_S)
        await until(lambda: services.counts(PAGES).get(("cancelled",)), "the second page given up")
        assert services.counts(PAGES) == {("failed",): 1, ("cancelled",): 1}
        assert services.counts(CALLS) == {("put", "store-unavailable"): 1}
    assert counts(mine, CLIENT_CALLS) == {("put", "store-unavailable"): 1}


async def test_what_is_refused_is_counted() -> None:
    made = prompt()
    damaged = [made.header(), *made.page(0)[:-1], page_end(0, b"other bytes")]
    coded = prompt(pages=1, codec="lexico", codec_config='{"sparsity":2}', dictionary=b"d" * 32)
    artefact = random_set(layers=1, head_dim=8, atoms=16).to_bytes()
    async with running_services() as services:
        for messages in (damaged, coded.upload()):
            with pytest.raises(grpc.aio.AioRpcError):
                await services.offload.Put(stream(messages))
        with pytest.raises(grpc.aio.AioRpcError):
            await services.dictionaries.Register(stream_of(registration(artefact, b"x" * 32)))
        counts = services.counts
        assert counts(PAGES) == {("failed",): 1}
        assert counts(CHECKSUM_FAILURES) == {("upload",): 1}
        assert counts(PAGE_FAILURES) == {("unknown-dictionary",): 1}
        assert counts(SETS_REFUSED) == {("unknown-dictionary",): 1, ("invalid-input",): 1}


async def _messages(made: Prompt) -> Any:
    for message in made.upload():
        yield message.SerializeToString()
