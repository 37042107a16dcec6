"""Put against a real server: what is taken, and who sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from lexico_codec.pages import decode_group
from lexico_proto import errors
from lexico_proto.v1 import offload_pb2 as pb
from lexico_proto.v1 import reload_pb2
from lexico_store import MemoryStore
from tests.support.services import (
    Prompt,
    error_of,
    prompt,
    running_services,
)
from tests.support.uploads import SCOPE, put


async def test_stores_pages_that_come_back_bit_identical() -> None:
    made = prompt(group_layers=2)
    async with running_services() as services:
        response = await put(services, made.upload())
        assert [r.outcome for r in response.pages] == [pb.PAGE_OUTCOME_STORED] * 2
        assert all(r.stored_bytes > made.spec.page_bytes for r in response.pages)
        for page, key in enumerate(made.keys):
            for group, expected in enumerate(made.pages[page]):
                frame = services.store.read(SCOPE, [key], group)[0]
                assert isinstance(frame, bytes)
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
