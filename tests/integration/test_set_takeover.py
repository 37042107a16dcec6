"""Nodes that start without a set, at real servers: until it is published, and from then on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lexico_client import AsyncClient, Coding, GrpcTransport
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.sets.models import model_names
from lexico_codec.spec import CacheSpec, make_spec
from lexico_proto import errors
from lexico_proto.metrics import CALLS, SET_SEARCHES
from lexico_proto.v1 import dictionaries_pb2 as pb
from lexico_services.config import ReloadConfig
from tests.support.client_fixtures import PATIENT, Landing, random_cache, views_of
from tests.support.dictionaries import random_set
from tests.support.services import TINY, Services, running_services
from tests.support.waiting import PATIENCE_S, until

BASE = make_spec(weights=bytes(range(32)), geometry=TINY, codec="lossless", page_tokens=8)
TOKENS = list(range(100, 135))  # four pages and a tail
SET = random_set(TINY.layers, TINY.head_dim, kv_heads=TINY.kv_heads)
CODECS = ("lexico", "lexico-adaptive")
EAGER = replace(PATIENT, sets=1e-9)
CALLERS = {
    "red": "red:token-of-a-red-node",
    "red-admin": "red:token-of-the-red-admin:admin,offload",
    "blue": "blue:token-of-a-blue-node",
    "operator": "ops:token-of-the-operator:operator,offload",
}


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{line}\n" for line in CALLERS.values()))
    bounds = ReloadConfig(max_stream_s=PATIENCE_S)
    async with running_services(token_file=tokens, reload=bounds) as running:
        yield running


@asynccontextmanager
async def node(services: Services, who: str, folder: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(
        reload=services.reload_address,
        offload=services.offload_address,
        token=CALLERS[who].split(":")[1],
        dictionaries_dir=folder / who,
        timeouts=EAGER,
    ) as client:
        yield client


def transport_of(services: Services, who: str) -> GrpcTransport:
    return GrpcTransport(services.reload_address, token=CALLERS[who].split(":")[1])


async def taken(coding: Coding) -> CacheSpec:
    await until(lambda: coding.spec(BASE) != BASE, "the set is taken over")
    return coding.spec(BASE)


async def loaded(client: AsyncClient, coding: Coding) -> tuple[CacheSpec, int, torch.Tensor]:
    """What a prompt comes back as, as an engine asks for it."""
    spec, timeout = await client.spec_to_load(coding, BASE, TOKENS, recent_tokens=1)
    landing = Landing(spec)
    found = await client.load(spec, TOKENS, landing, timeout=timeout)
    assert found.reason is None
    return spec, found.pages, landing.cache


async def test_a_conversation_goes_on_while_a_set_is_published(
    services: Services, tmp_path: Path
) -> None:
    cache = random_cache(BASE, 4)
    async with (
        node(services, "red", tmp_path / "a") as one,
        node(services, "red", tmp_path / "b") as two,
        node(services, "red-admin", tmp_path) as admin,
        node(services, "blue", tmp_path) as stranger,
        node(services, "operator", tmp_path) as operator,
    ):
        first, second = await one.coding(BASE, "paper"), await two.coding(BASE, "paper")
        blue = await stranger.coding(BASE, "paper")
        assert (first.waiting, second.waiting, blue.waiting) == (True, True, True)

        await one.offload(first.spec(BASE), TOKENS, views_of(BASE, cache))  # the first turn
        spec, pages, there = await loaded(two, second)
        assert (spec.namespace, pages) == (BASE.namespace, 4)
        assert torch.equal(there, cache)

        assert await admin.publish_dictionary(SET, BASE) == CODECS
        now, same = await taken(first), await taken(second)
        assert now.namespace == same.namespace
        assert (now.codec.name, now.dictionary) == ("lexico", SET.digest)

        spec, pages, there = await loaded(two, second)  # the next turn: of before, bit by bit
        assert (spec.namespace, pages) == (BASE.namespace, 4)
        assert torch.equal(there, cache)
        report = await two.offload(same, TOKENS, views_of(same, there))
        assert report.pages == ("stored",) * 4
        spec, pages, coded = await loaded(one, first)
        assert (spec.namespace, pages) == (now.namespace, 4)
        assert 0 < float((coded - cache).norm() / cache.norm()) < 1
        assert torch.equal(coded, (await loaded(two, second))[2])

        # Tenant blue has the same model, and is told of nothing.
        finds = services.counts(CALLS).get(("find", "ok"), 0)
        await until(
            lambda: blue.spec(BASE) is None or services.counts(CALLS)["find", "ok"] > finds + 1,
            "blue asks again",
        )
        assert blue.waiting
        with pytest.raises(errors.UnknownDictionary):
            await stranger.fetch_dictionary(SET.digest)

        other = random_set(TINY.layers, TINY.head_dim, seed=9, kv_heads=TINY.kv_heads)
        assert await operator.publish_dictionary(other, BASE, shared=True) == CODECS
        blues = await taken(blue)
        assert blues.dictionary == other.digest
        report = await stranger.offload(blues, TOKENS, views_of(blues, cache))
        assert report.pages == ("stored",) * 4  # encoders find the set too
        fresh = await one.coding(BASE, "paper")
        assert fresh.spec(BASE).dictionary == SET.digest  # the tenant's own comes first
        searches = services.counts(SET_SEARCHES)
        assert searches["found",] >= 3
        assert searches["none",] >= 3


async def test_who_may_publish(services: Services, tmp_path: Path) -> None:
    async with (
        node(services, "red", tmp_path) as red,
        node(services, "red-admin", tmp_path) as admin,
        node(services, "operator", tmp_path) as operator,
    ):
        with pytest.raises(errors.PermissionDenied, match="admin"):
            await red.publish_dictionary(SET, BASE)
        with pytest.raises(errors.PermissionDenied, match="operator"):
            await admin.publish_dictionary(SET, BASE, shared=True)
        with pytest.raises(errors.PermissionDenied, match="admin"):
            await operator.publish_dictionary(SET, BASE)
        assert (await red.coding(BASE, "paper")).waiting
        assert await admin.publish_dictionary(SET, BASE) == CODECS
        with pytest.raises(errors.PermissionDenied, match="admin"):
            await red.take_back_dictionary(BASE)
        assert not (await red.coding(BASE, "paper")).waiting
        assert await admin.take_back_dictionary(BASE) == CODECS
        assert (await red.coding(BASE, "paper")).waiting


async def test_a_set_for_another_model_is_refused(
    services: Services, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was published by hand: a client of ours would have refused to."""
    wrong = random_set(TINY.layers + 1, TINY.head_dim, kv_heads=TINY.kv_heads)
    async with node(services, "red", tmp_path) as red:
        await red.register_dictionary(wrong)
        transport = transport_of(services, "red-admin")
        request = pb.PublishRequest(
            digest=wrong.digest, models=model_names(BASE.weights, BASE.geometry)
        )
        await transport.publish(request, PATIENCE_S)
        await transport.close()
        coding = await red.coding(BASE, "paper")
        assert coding.waiting
        cache = random_cache(BASE, 4)
        await red.offload(coding.spec(BASE), TOKENS, views_of(BASE, cache))
        assert torch.equal((await loaded(red, coding))[2], cache)
    told = [r.getMessage() for r in caplog.records if "published set not taken" in r.getMessage()]
    assert len(told) == 1
    assert f"{TINY.layers + 1} layers, not {TINY.layers}" in told[0]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (pb.PublishRequest(digest=SET.digest), errors.InvalidInput),
        (pb.PublishRequest(digest=SET.digest, models=[b"m" * 31]), errors.InvalidInput),
        (pb.PublishRequest(digest=SET.digest, models=[b"m" * 32] * 5), errors.InvalidInput),
        (pb.PublishRequest(digest=b"short", models=[b"m" * 32]), errors.InvalidInput),
        (pb.PublishRequest(digest=SET.digest, models=[b"m" * 32]), errors.UnknownDictionary),
        (pb.FindRequest(codec="lexico"), errors.InvalidInput),
        (pb.FindRequest(models=[b""], codec="lexico"), errors.InvalidInput),
        (pb.FindRequest(models=[b"m" * 32], codec="of-tomorrow\n"), errors.InvalidInput),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else type(each).__name__,
)
async def test_what_cannot_be_asked(
    services: Services, request_: Any, error: type[Exception]
) -> None:
    transport = transport_of(services, "red-admin")
    call = transport.publish if isinstance(request_, pb.PublishRequest) else transport.find
    with pytest.raises(error):
        await call(request_, PATIENCE_S)
    await transport.close()


async def test_sets_for_every_tenant_are_bounded(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{line}\n" for line in CALLERS.values()))
    bounds = ReloadConfig(max_dictionaries=2)
    async with running_services(token_file=tokens, reload=bounds) as services:
        async with node(services, "operator", tmp_path) as operator:
            made: list[DictionarySet] = [
                random_set(TINY.layers, TINY.head_dim, seed=seed, kv_heads=TINY.kv_heads)
                for seed in (1, 101)
            ]
            for each in made:
                await operator.publish_dictionary(each, BASE, shared=True)
            await operator.publish_dictionary(made[0], BASE, shared=True)  # is there
        async with node(services, "red-admin", tmp_path) as admin:
            await admin.register_dictionary(SET)
        async with node(services, "red", tmp_path) as red:
            assert (await red.coding(BASE, "paper")).spec(BASE).dictionary == made[0].digest
