"""Put against a real server: bounds on bytes and time, and callers that go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from lexico_codec.pieces import Piece
from lexico_codec.put_messages import parse_put
from lexico_proto import errors
from lexico_proto.v1 import offload_pb2 as pb
from lexico_services.config import OffloadConfig
from lexico_services.offload.upload import Upload
from lexico_worker.page_encoder import Outcome, PageDone, PageJob
from tests.support.services import (
    Services,
    error_of,
    prompt,
    running_services,
    stream,
)
from tests.support.uploads import put
from tests.support.waiting import PATIENCE_S, lingering, settle, until


class StuckEncoders:
    """Encoders that hold every page until they are let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.encoding = 0
        self.most = 0

    async def running(self) -> int | None:
        return None

    async def place(self, page: list[Piece]) -> Any:
        return page.copy()

    async def encode(self, job: PageJob, placed: Any) -> PageDone:
        self.encoding += 1
        self.most = max(self.most, self.encoding)
        try:
            await self.go.wait()
            return PageDone(Outcome.STORED, 1)
        finally:
            self.encoding -= 1


async def test_budget_refuses_at_once_and_is_given_back() -> None:
    made, stuck = prompt(pages=1), StuckEncoders()
    bound = OffloadConfig(max_inflight_bytes=made.spec.page_bytes)
    async with running_services(offload=bound, encoders=stuck) as services:
        first = asyncio.create_task(put(services, made.upload()))
        await until(lambda: stuck.encoding, "a page in an encoder")
        with pytest.raises(errors.LexicoError) as caught:
            await put(services, prompt(seed=1, pages=1).upload())
        assert type(caught.value) is errors.Busy  # while the first is there: nobody let it go
        stuck.go.set()
        await first
        assert services.ingress.budget.used == 0
        assert services.ingress.budget.peak == made.spec.page_bytes


async def test_pages_in_flight_stay_within_the_budget() -> None:
    made, stuck = prompt(pages=6), StuckEncoders()
    bound = OffloadConfig(max_inflight_bytes=2 * made.spec.page_bytes, pages_ahead=3)
    async with running_services(offload=bound, encoders=stuck) as services:
        call = asyncio.create_task(put(services, made.upload()))
        await until(lambda: stuck.encoding == 2, "two pages in encoders")
        await lingering()
        assert stuck.encoding == 2  # of six pages; the third waits for room before it is read
        stuck.go.set()
        await call
        assert stuck.most == 2
        assert services.ingress.budget.peak <= bound.max_inflight_bytes


async def test_a_put_without_a_header_is_given_up() -> None:
    async def nothing() -> AsyncIterator[pb.PutRequest]:
        await asyncio.Event().wait()
        yield pb.PutRequest()

    async with running_services(offload=OffloadConfig(idle_s=0.3)) as services:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await services.offload.Put(nothing(), timeout=PATIENCE_S)
        assert type(error_of(caught.value)) is errors.DeadlineExpired


async def test_uploads_at_a_time_are_bounded() -> None:
    made = prompt()

    async def held() -> AsyncIterator[pb.PutRequest]:
        yield made.header()
        await asyncio.Event().wait()

    bound = OffloadConfig(max_streams=1, idle_s=PATIENCE_S)
    async with running_services(offload=bound) as services:
        first = services.offload.Put(held())
        await until(lambda: services.ingress.budget.used > 0, "the first has begun")
        with pytest.raises(errors.Busy, match="1 uploads are under way"):
            await put(services, prompt(seed=1, pages=1).upload())
        first.cancel()
        await until(lambda: services.ingress.budget.used == 0, "the first is gone")
        await put(services, prompt(seed=1, pages=1).upload())


async def test_an_upload_that_stalls_is_given_up() -> None:
    made = prompt()
    async with running_services(offload=OffloadConfig(idle_s=0.3)) as services:

        async def half() -> AsyncIterator[pb.PutRequest]:
            yield made.header()
            yield pb.PutRequest(data=made.data()[:100])
            await asyncio.Event().wait()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await services.offload.Put(half(), timeout=PATIENCE_S)
        assert type(error_of(caught.value)) is errors.DeadlineExpired
        assert services.ingress.budget.used == 0


async def test_a_caller_that_cancels_frees_everything() -> None:
    made, stuck = prompt(pages=1), StuckEncoders()
    async with running_services(encoders=stuck) as services:
        call = services.offload.Put(stream(made.upload()))
        waiting = asyncio.create_task(call.wait_for_connection())
        await until(lambda: stuck.encoding, "a page in an encoder")
        await waiting
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await _everything_free(services, stuck)


class SlowToStop(StuckEncoders):
    """Encoders whose work ends some time after it was cancelled."""

    async def encode(self, job: PageJob, placed: Any) -> PageDone:
        self.encoding += 1
        try:
            return await asyncio.Future[PageDone]()
        finally:
            await self.go.wait()
            self.encoding -= 1


async def test_a_call_that_is_cancelled_twice_frees_everything() -> None:
    """By the end of its stream and by the end of its call, as gRPC does it in either order."""
    made, slow = prompt(), SlowToStop()
    async with running_services(encoders=slow) as services:

        async def first_page() -> AsyncIterator[Any]:
            for message in made.page(0):
                yield parse_put(message.SerializeToString())
            await asyncio.Event().wait()

        upload = Upload(b"scope", made.spec, made.token_ids, (0, 1), tuple(made.keys))
        call = asyncio.create_task(services.ingress.put(upload, first_page()))
        await until(lambda: slow.encoding, "a page in an encoder")
        for _ in range(2):
            call.cancel()
            await settle()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert services.ingress.budget.used == 2 * made.spec.page_bytes, "as long as it is there"
        slow.go.set()
        await _everything_free(services, slow)


async def test_a_caller_whose_deadline_comes_frees_everything() -> None:
    made, stuck = prompt(pages=1), StuckEncoders()
    async with running_services(encoders=stuck) as services:
        for seconds in (0.5, 5.0, 50.0, PATIENCE_S / 2):
            call = services.offload.Put(stream(made.upload()), timeout=seconds)
            while not (began := stuck.encoding > 0) and not call.done():
                await asyncio.sleep(0)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert type(error_of(caught.value)) is errors.DeadlineExpired
            await _everything_free(services, stuck)
            if began:  # else the deadline came before the page was there: a longer one
                return
        pytest.fail("no page came to an encoder before the deadline")


async def test_an_end_does_not_wait_for_pages_that_take_too_long() -> None:
    made, stuck = prompt(), StuckEncoders()
    async with running_services(encoders=stuck) as services:
        upload = [made.header(durability=pb.DURABILITY_RECEIVED), *made.body()]
        await put(services, upload)
        await until(lambda: stuck.encoding == 2, "pages in encoders")
        await services.ingress.close(within_s=0.0)
        await _everything_free(services, stuck)


async def _everything_free(services: Services, stuck: StuckEncoders | None = None) -> None:
    def held() -> tuple[int, int]:
        return (stuck.encoding if stuck else 0), services.ingress.budget.used

    await until(lambda: held() == (0, 0), "no page in an encoder and no byte in flight", held)


async def test_a_caller_that_dies_while_uploading_frees_everything() -> None:
    made = prompt()
    async with running_services() as services:

        async def half() -> AsyncIterator[pb.PutRequest]:
            yield made.header()
            yield pb.PutRequest(data=made.data()[:100])
            await asyncio.Event().wait()

        call = services.offload.Put(half())
        waiting = asyncio.ensure_future(call)
        await until(lambda: services.ingress.budget.used, "bytes in flight")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await _everything_free(services)
