"""Put against a real server: what is taken, and everything that is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from lexico_client import GrpcTransport
from lexico_codec.geometry import Geometry
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group
from lexico_codec.pieces import Piece
from lexico_codec.spec import make_spec
from lexico_codec.wire import spec_from_wire, spec_to_wire
from lexico_proto import errors
from lexico_proto.v1 import offload_pb2 as pb
from lexico_proto.v1 import reload_pb2
from lexico_services.auth import DEFAULT_TENANT
from lexico_services.config import OffloadConfig
from lexico_store import MemoryStore
from lexico_store.scopes import tenant_scope
from lexico_worker.page_encoder import Outcome, PageDone, PageJob
from tests.support.services import (
    TINY,
    Prompt,
    Services,
    data_messages,
    error_of,
    page_end,
    prompt,
    running_services,
    serialised,
    stream,
)
from tests.support.waiting import PATIENCE_S, lingering, until

SCOPE = tenant_scope(DEFAULT_TENANT)


async def put(
    services: Services, messages: list[pb.PutRequest], token: str | None = None
) -> pb.PutResponse:
    """A Put through the client's transport: bare grpc.aio loses some statuses on its way."""
    transport = GrpcTransport(services.reload_address, services.offload_address, token)
    try:
        return await transport.put(serialised(messages), PATIENCE_S)
    finally:
        await transport.close()


async def refused(messages: list[pb.PutRequest], **options: Any) -> errors.LexicoError:
    """The error that a Put of these messages ends with; nothing of it may be visible."""
    async with running_services(**options) as services:
        with pytest.raises(errors.LexicoError) as caught:
            await put(services, messages)
        assert services.ingress.budget.used == 0
        assert services.store.present(SCOPE, prompt().keys) == [False, False]
        return caught.value


async def test_stores_pages_that_come_back_bit_identical() -> None:
    made = prompt(group_layers=2)
    async with running_services() as services:
        response = await put(services, made.upload())
        assert [r.outcome for r in response.pages] == [pb.PAGE_OUTCOME_STORED] * 2
        assert all(r.stored_bytes > made.spec.page_bytes for r in response.pages)
        for page, key in enumerate(made.keys):
            for group, expected in enumerate(made.pages[page]):
                frame = services.store.read(SCOPE, [key], group)[0]
                assert frame is not None
                out = torch.empty(made.spec.group_shape(group))
                decode_group(made.spec, key, page, group, frame, out)
                assert torch.equal(out, expected)


async def test_chunks_may_end_anywhere() -> None:
    made = prompt()
    async with running_services() as services:
        await put(services, [made.header(), *made.body(size=77)])
        assert services.store.present(SCOPE, made.keys) == [True, True]


async def test_a_second_put_finds_the_pages_present() -> None:
    made = prompt()
    async with running_services() as services:
        await put(services, made.upload())
        response = await put(services, made.upload())
        assert [r.outcome for r in response.pages] == [pb.PAGE_OUTCOME_PRESENT] * 2


async def test_a_page_that_another_encoder_holds_is_left_to_it() -> None:
    made = prompt(pages=1)
    async with running_services() as services:
        lease = services.store.lease(SCOPE, made.keys[0], 10)
        assert lease is not None
        response = await put(services, made.upload())
        assert response.pages[0].outcome == pb.PAGE_OUTCOME_IN_PROGRESS


async def test_missing_pages_alone_can_be_sent() -> None:
    made = prompt(pages=3)
    one = Prompt(made.spec, made.token_ids[:10], made.pages[1:2])
    async with running_services() as services:
        header = one.header(pages=[1], page_keys=made.keys[1:2])
        await put(services, [header, *one.page(0, index=1)])
        assert services.store.present(SCOPE, made.keys) == [False, True, False]


async def test_received_is_answered_before_the_page_is_committed() -> None:
    made = prompt()
    async with running_services() as services:
        upload = [made.header(durability=pb.DURABILITY_RECEIVED), *made.body()]
        response = await put(services, upload)
        assert [r.outcome for r in response.pages] == [pb.PAGE_OUTCOME_RECEIVED] * 2
        await services.ingress.close()
        assert services.store.present(SCOPE, made.keys) == [True, True]
        assert services.ingress.budget.used == 0


def changed(**fields: Any) -> list[pb.PutRequest]:
    made = prompt()
    return [made.header(**fields), *made.body()]


def changed_spec(**fields: Any) -> list[pb.PutRequest]:
    messages = prompt().upload()
    for name, value in fields.items():
        target = messages[0].header.spec
        *path, last = name.split("__")
        for part in path:
            target = getattr(target, part)
        setattr(target, last, value)
    return messages


DATA = prompt().data()

BAD_UPLOADS: dict[str, tuple[list[pb.PutRequest], type[errors.LexicoError]]] = {
    "empty stream": ([], errors.StreamTruncated),
    "no header": (data_messages(DATA), errors.InvalidInput),
    "two headers": ([prompt().header()] * 2, errors.InvalidInput),
    "header alone": ([prompt().header()], errors.StreamTruncated),
    "truncated": ([prompt().header(), *data_messages(DATA[:-1])], errors.StreamTruncated),
    "page without its end": ([prompt().header(), *data_messages(DATA)], errors.StreamTruncated),
    "page ends early": (
        [prompt().header(), *data_messages(DATA[:-4]), page_end(0, DATA[:-4])],
        errors.StreamTruncated,
    ),
    "page too long": (
        [prompt().header(), *data_messages(DATA + b"x"), page_end(0, DATA + b"x")],
        errors.StreamTooLong,
    ),
    "end of another page": (
        [prompt().header(), *data_messages(DATA), page_end(1, DATA)],
        errors.InvalidInput,
    ),
    "altered bytes": (
        [prompt().header(), *data_messages(bytes(len(DATA))), page_end(0, DATA)],
        errors.StreamDamaged,
    ),
    "empty data": ([prompt().header(), pb.PutRequest(data=b"")], errors.InvalidInput),
    "empty message": ([prompt().header(), pb.PutRequest()], errors.InvalidInput),
    "unknown durability": (changed(durability=7), errors.InvalidInput),
    "no pages": (changed(pages=[], page_keys=[]), errors.InvalidInput),
    "fewer keys than pages": (changed(page_keys=prompt().keys[:1]), errors.InvalidInput),
    "descending pages": (changed(pages=[1, 0]), errors.InvalidInput),
    "too few tokens": (changed(token_ids=prompt().token_ids[:-1]), errors.TokenCountMismatch),
    "too many tokens": (changed(token_ids=prompt().token_ids * 2), errors.TokenCountMismatch),
    "foreign tokens": (changed(token_ids=prompt(seed=1).token_ids), errors.PageKeyMismatch),
    "foreign key": (changed(page_keys=prompt(seed=1).keys), errors.PageKeyMismatch),
    "short key": (changed(page_keys=[b"short"] * 2), errors.PageKeyMismatch),
    "foreign weights": (changed_spec(weights=b"x" * 32), errors.PageKeyMismatch),
    "short weights": (changed_spec(weights=b"x"), errors.InvalidInput),
    "unknown codec": (changed_spec(codec="zip"), errors.UnknownCodec),
    "unknown codec parameter": (changed_spec(codec_config='{"x":1}'), errors.ConfigurationError),
    "codec config no JSON": (changed_spec(codec_config="{"), errors.ConfigurationError),
    "unknown dtype": (changed_spec(geometry__dtype=9), errors.InvalidInput),
    "no layers": (changed_spec(geometry__layers=0), errors.ShapeMismatch),
    "too many layers": (changed_spec(geometry__layers=10_000), errors.ShapeMismatch),
    "no page tokens": (changed_spec(page_tokens=0), errors.TokenCountMismatch),
    "no group layers": (changed_spec(group_layers=0), errors.InvalidInput),
    "raw with a dictionary": (changed_spec(dictionary=b"d" * 32), errors.InvalidInput),
}


@pytest.mark.parametrize("case", BAD_UPLOADS)
async def test_bad_upload_is_refused_with_its_own_error(case: str) -> None:
    messages, expected = BAD_UPLOADS[case]
    error = await refused(messages)
    assert type(error) is expected
    assert error.message


async def test_another_layer_count_or_dtype_is_noticed_by_its_bytes() -> None:
    for change in ({"geometry__dtype": 2}, {"geometry__layers": 2, "shard__total_layers": 2}):
        messages = changed_spec(**change)
        wire = messages[0].header.spec
        wire.group_layers = 1
        del messages[0].header.page_keys[:]
        messages[0].header.page_keys.extend(page_keys(spec_from_wire(wire), prompt().token_ids))
        assert type(await refused(messages)) is errors.StreamTooLong


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
async def test_nan_and_infinity_are_refused(value: float) -> None:
    made = prompt()
    made.pages[1][-1][0, 1, 2, 1, 3] = value
    async with running_services() as services:
        with pytest.raises(errors.LexicoError) as caught:
            await put(services, made.upload())
        assert type(caught.value) is errors.NonFiniteCache
        # The page before it may be there or not, by who was first; the bad one never is.
        assert services.store.present(SCOPE, made.keys)[1] is False
        assert services.ingress.budget.used == 0


async def test_pages_before_a_failure_are_whole_and_stay() -> None:
    made = prompt()
    cut = [made.header(), *made.page(0), *data_messages(made.data(1)[:-1])]
    more = [*made.upload(), *data_messages(b"more")]
    for messages, expected in ((cut, errors.StreamTruncated), (more, errors.StreamTooLong)):
        async with running_services() as services:
            with pytest.raises(errors.LexicoError) as caught:
                await put(services, messages)
            assert type(caught.value) is expected
            await services.ingress.close()
            for page, present in enumerate(services.store.present(SCOPE, made.keys)):
                if present:
                    frame = services.store.read(SCOPE, [made.keys[page]], 0)[0]
                    assert frame is not None
                    out = torch.empty(made.spec.group_shape(0))
                    decode_group(made.spec, made.keys[page], page, 0, frame, out)
                    assert torch.equal(out, made.pages[page][0])


async def test_unknown_dictionary() -> None:
    made = prompt(codec="lexico", codec_config='{"sparsity":2}', dictionary=b"d" * 32)
    assert type(await refused(made.upload())) is errors.UnknownDictionary


async def test_message_over_the_limit() -> None:
    error = await refused([prompt().header(), pb.PutRequest(data=bytes(2 << 20))])
    assert isinstance(error, errors.Busy)  # RESOURCE_EXHAUSTED, by gRPC itself


async def test_page_over_the_budget_for_ever() -> None:
    error = await refused(prompt().upload(), offload=OffloadConfig(max_inflight_bytes=100))
    assert type(error) is errors.InvalidInput
    assert "max_inflight_bytes" in error.message


class StuckEncoders:
    """Encoders that hold every page until they are let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.running = 0
        self.most = 0

    async def place(self, page: list[Piece]) -> Any:
        return page.copy()

    async def encode(self, job: PageJob, placed: Any) -> PageDone:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go.wait()
            return PageDone(Outcome.STORED, 1)
        finally:
            self.running -= 1


async def test_budget_refuses_at_once_and_is_given_back() -> None:
    made, stuck = prompt(pages=1), StuckEncoders()
    bound = OffloadConfig(max_inflight_bytes=made.spec.page_bytes)
    async with running_services(offload=bound, encoders=stuck) as services:
        first = asyncio.create_task(put(services, made.upload()))
        await until(lambda: stuck.running, "a page in an encoder")
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
        await until(lambda: stuck.running == 2, "two pages in encoders")
        await lingering()
        assert stuck.running == 2  # of six pages; the third waits for room before it is read
        stuck.go.set()
        await call
        assert stuck.most == 2
        assert services.ingress.budget.peak <= bound.max_inflight_bytes


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


async def test_a_header_cannot_ask_for_endless_hashing() -> None:
    tokens = list(range(70_000))
    made = prompt(pages=1, page_tokens=1)
    error = await refused([made.header(token_ids=tokens, pages=[69_999])])
    assert type(error) is errors.InvalidInput
    assert "sequence" in error.message


async def test_a_group_over_the_stores_cap_is_refused_before_it_is_sent() -> None:
    wide = Geometry(layers=1, kv_heads=1024, head_dim=1024, dtype="float32")
    made = prompt(pages=1, page_tokens=1, geometry=TINY)
    spec = make_spec(weights=b"w" * 32, geometry=wide, codec="raw", page_tokens=16)
    tokens = list(range(16))
    header = made.header(
        spec=spec_to_wire(spec), token_ids=tokens, page_keys=page_keys(spec, tokens)
    )
    error = await refused([header])
    assert type(error) is errors.InvalidInput
    assert "layer group" in error.message


async def test_a_caller_that_cancels_frees_everything() -> None:
    made, stuck = prompt(pages=1), StuckEncoders()
    async with running_services(encoders=stuck) as services:
        call = services.offload.Put(stream(made.upload()))
        waiting = asyncio.create_task(call.wait_for_connection())
        await until(lambda: stuck.running, "a page in an encoder")
        await waiting
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await _everything_free(services, stuck)


async def test_a_caller_whose_deadline_comes_frees_everything() -> None:
    made, stuck = prompt(pages=1), StuckEncoders()
    async with running_services(encoders=stuck) as services:
        for seconds in (0.5, 5.0, 50.0, PATIENCE_S / 2):
            call = services.offload.Put(stream(made.upload()), timeout=seconds)
            while not (began := stuck.running > 0) and not call.done():
                await asyncio.sleep(0)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert type(error_of(caught.value)) is errors.DeadlineExpired
            await _everything_free(services, stuck)
            if began:  # else the deadline came before the page was there: a longer one
                return
        pytest.fail("no page came to an encoder before the deadline")


async def _everything_free(services: Services, stuck: StuckEncoders | None = None) -> None:
    def held() -> tuple[int, int]:
        return (stuck.running if stuck else 0), services.ingress.budget.used

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


async def test_tenants_do_not_see_each_other(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("# tenants\n\nred:red-token-0123456789\nblue:blue-token-0123456789\n")
    made = prompt()

    def bearer(token: str) -> dict[str, Any]:
        return {"metadata": (("authorization", f"Bearer {token}"),)}

    red, blue = "red-token-0123456789", "blue-token-0123456789"
    async with running_services(MemoryStore(), token_file=tokens) as services:
        await put(services, made.upload(), red)
        request = reload_pb2.MatchRequest(page_keys=made.keys)
        assert (await services.reload.Match(request, **bearer(red))).leading == 2
        assert (await services.reload.Match(request, **bearer(blue))).leading == 0
        for token in (None, "green-token-0123456789"):
            with pytest.raises(errors.Unauthenticated):
                await put(services, made.upload(), token)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await services.reload.Match(request, **(bearer(token) if token else {}))
            assert type(error_of(refusal.value)) is errors.Unauthenticated
