"""Why a prompt is not found, asked of the real servers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from lexico_client import AbsenceCause, AsyncClient
from lexico_codec.keys import page_keys
from lexico_proto.errors import InvalidInput
from lexico_proto.v1 import admin_pb2, admin_pb2_grpc, reload_pb2
from lexico_store import keys
from lexico_store.scopes import tenant_scope
from tests.support.client_fixtures import (
    PAGE_TOKENS,
    PATIENT,
    TOKENS,
    random_cache,
    small_spec,
    views_of,
)
from tests.support.services import Services, error_of, running_services

SPEC = small_spec()
SALTED = replace(SPEC, salt="of one user")
RED, BLUE, ALL = "token-of-tenant-red", "token-of-tenant-blue", "token-of-reds-operator"


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"red:{RED}\nblue:{BLUE}\nred:{ALL}:admin\n")
    async with running_services(token_file=tokens) as running:
        yield running


def node(services: Services, token: str, folder: Path) -> AsyncClient:
    return AsyncClient(
        reload=services.reload_address,
        offload=services.offload_address,
        token=token,
        dictionaries_dir=folder,
        timeouts=PATIENT,
    )


async def forget(services: Services, **what: object) -> None:
    async with grpc.aio.insecure_channel(services.reload_address) as channel:
        metadata = (("authorization", f"Bearer {ALL}"),)
        request = admin_pb2.ForgetRequest(**what)  # type: ignore[arg-type]
        await admin_pb2_grpc.AdminStub(channel).Forget(request, metadata=metadata)


async def test_from_the_first_page_to_what_was_forgotten(
    services: Services, tmp_path: Path
) -> None:
    other = replace(SPEC, lora="red", weights=bytes(32))
    async with node(services, RED, tmp_path) as client:
        nothing = await client.explain(SPEC, TOKENS)
        assert (nothing.namespaces, nothing.stored, nothing.untold) == (0, (), None)
        assert nothing.absence is not None
        assert nothing.absence.cause is AbsenceCause.NO_TRACE

        await client.offload(other, TOKENS, views_of(other, random_cache(other, 4)), pages=3)
        before = await client.explain(SPEC, TOKENS)
        assert before.nearest is not None
        assert [(d.part, d.theirs) for d in before.nearest.differences] == [
            ("weights", "00" * 32),
            ("lora", "red"),
        ]
        assert before.nearest.tokens == 3 * PAGE_TOKENS
        assert 0 < before.nearest.stored_s <= time.time()

        await client.offload(SPEC, TOKENS, views_of(SPEC, random_cache(SPEC, 4)))
        found = await client.explain(SPEC, TOKENS)
        assert found.nearest is not None
        assert (found.nearest.differences, found.first_absent, found.absence) == ((), None, None)

        scope = tenant_scope("red")
        services.store.discard(scope, [page_keys(SPEC, TOKENS)[1]])  # as an eviction does
        for _ in range(2):  # to ask changes nothing
            evicted = await client.explain(SPEC, TOKENS)
            assert evicted.absence is not None
            assert (evicted.first_absent, evicted.absence.cause) == (1, AbsenceCause.LEFT)

        prompt = admin_pb2.Prompt(namespace=SPEC.namespace, page_keys=page_keys(SPEC, TOKENS)[:1])
        await forget(services, prompt=prompt)
        forgotten = await client.explain(SPEC, TOKENS)
        assert forgotten.absence is not None
        assert forgotten.absence.cause is AbsenceCause.FORGOTTEN
        assert found.nearest.stored_s < forgotten.absence.forgotten_s <= time.time()
        assert forgotten.nearest is not None
        assert forgotten.nearest.differences == (), "the other pages are there"

        await forget(services, namespace=SPEC.namespace)
        gone = await client.explain(SPEC, TOKENS)
        assert gone.nearest is not None
        assert gone.nearest.differences != ()
        await forget(services, everything=True)
        assert (await client.explain(SPEC, TOKENS)).stored == ()


async def test_what_a_tenant_and_a_colleague_are_told(services: Services, tmp_path: Path) -> None:
    """Another tenant nothing; a colleague neither the salt nor the namespace that it is in."""
    async with node(services, RED, tmp_path) as red, node(services, BLUE, tmp_path) as blue:
        await red.offload(SALTED, TOKENS, views_of(SALTED, random_cache(SALTED, 4)))
        for spec in (SPEC, SALTED):
            told = await blue.explain(spec, TOKENS)
            assert (told.namespaces, told.stored) == (0, ())
        asked = reload_pb2.NamespacesRequest(namespace=SPEC.namespace)
        metadata = (("authorization", f"Bearer {RED}"),)
        answer = await services.reload.Namespaces(asked, metadata=metadata)
        assert answer.total == 1
        said = answer.SerializeToString()
        assert b"of one user" not in said
        assert SALTED.namespace not in said
        held = services.store.read_record(keys.namespaces(tenant_scope("red")))
        assert not any(b"of one user" in value for value in held.values())
        seen = (await red.explain(SPEC, TOKENS)).nearest
        assert seen is not None
        assert ([d.part for d in seen.differences], seen.tokens) == (["salt"], None)
        mine = (await red.explain(SALTED, TOKENS)).nearest
        assert mine is not None
        assert mine.differences == ()


@pytest.mark.parametrize(
    "request_of",
    [
        reload_pb2.NamespacesRequest(),
        reload_pb2.NamespacesRequest(namespace=b"short"),
        reload_pb2.NamespacesRequest(namespace=bytes(32), page_key=b"short"),
    ],
    ids=["no namespace", "a short one", "a short key"],
)
async def test_requests_that_are_refused(
    services: Services, request_of: reload_pb2.NamespacesRequest
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await services.reload.Namespaces(request_of, metadata=(("authorization", f"Bearer {RED}"),))
    assert isinstance(error_of(caught.value), InvalidInput)
