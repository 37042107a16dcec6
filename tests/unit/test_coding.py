"""A model without a set: lossless until one is published, checked, and taken over."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lexico_client import AsyncClient, Client, Coding, InMemoryTransport, fingerprint_files
from lexico_client._coding import _JITTER, _MOST_WAITING
from lexico_client._coding_counts import CodingCounts
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.sets.models import model_names
from lexico_codec.spec import CacheSpec, make_spec
from lexico_proto import errors
from lexico_proto.metrics import CLIENT_MODELS, CLIENT_SETS_REFUSED, Metrics
from lexico_proto.v1 import dictionaries_pb2 as pb
from lexico_proto.v1 import reload_pb2 as reload
from tests.support.client_fixtures import (
    PAGE_TOKENS,
    PATIENT,
    TOKENS,
    Landing,
    random_cache,
    small_dictionary,
    small_spec,
    views_of,
)
from tests.support.saved_model import save_tiny
from tests.support.waiting import until, wait_until

BASE = small_spec("lossless")
SET = small_dictionary()
EAGER = replace(PATIENT, sets=1e-9)
"""Asks whenever the coding is used."""


class Service(InMemoryTransport):
    """Counts questions, and fails as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.finds, self.fetches = 0, 0
        self.matched: list[bytes] = []
        self.refuses: errors.LexicoError | None = None

    async def find(self, request: pb.FindRequest, timeout: float) -> pb.FindResponse:
        self.finds += 1
        if self.refuses is not None:
            raise self.refuses
        return await super().find(request, timeout)

    async def fetch(self, request: pb.FetchRequest, timeout: float):  # type: ignore[no-untyped-def]
        self.fetches += 1
        async for part in super().fetch(request, timeout):
            yield part

    async def match(self, request: reload.MatchRequest, timeout: float) -> reload.MatchResponse:
        self.matched.append(request.namespace)
        return await super().match(request, timeout)

    def offer(self, dictionary: DictionarySet, spec: CacheSpec = BASE) -> None:
        """Registers and publishes a set, whether it fits or not."""
        self.dictionaries[dictionary.digest] = dictionary
        for name in model_names(spec.weights, spec.geometry):
            self.published[name, "lexico"] = dictionary.digest, math.inf


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def client(service: Service, metrics: Metrics, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(
        transport=service, dictionaries_dir=tmp_path, timeouts=EAGER, metrics=metrics
    ) as client:
        yield client


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


async def taken(coding: Coding) -> CacheSpec:
    await until(lambda: coding.spec(BASE) != BASE, "the set is taken over")
    return coding.spec(BASE)


def models(metrics: Metrics) -> dict[tuple[str, ...], int | float]:
    return {key: n for key, n in metrics.snapshot()[CLIENT_MODELS].items() if n}


# Taking over


async def test_lossless_until_a_set_is_published(
    client: AsyncClient, service: Service, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    coding = await client.coding(BASE, "paper", model="my models/tiny")
    assert (coding.waiting, coding.spec(BASE), coding.former(BASE)) == (True, BASE, None)
    assert models(metrics) == {("lossless", "missing"): 1}
    (line,) = said(caplog)
    assert line.startswith("no set for my models/tiny with preset paper: running lossless")
    assert "lexico train --model 'my models/tiny' --text TEXT --out SET.safetensors" in line
    assert line.endswith("--codec lexico --register")
    for _ in range(3):
        coding.spec(BASE)
    assert await client.publish_dictionary(SET, BASE) == ("lexico", "lexico-adaptive")
    spec = await taken(coding)
    assert (spec.codec.name, spec.dictionary) == ("lexico", SET.digest)
    assert coding.spec(BASE) is spec
    assert models(metrics) == {("lexico", "published"): 1}
    assert [text.partition(":")[0] for text in said(caplog)[1:]] == [
        "set taken for my models/tiny with preset paper"
    ]
    finds = service.finds
    coding.spec(BASE)
    assert service.finds == finds  # no more questions
    del coding
    assert models(metrics) == {}


async def test_a_set_that_is_published_is_there_from_the_start(
    client: AsyncClient, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.offer(SET)
    coding = await client.coding(BASE, "paper", without_set="refuse")
    assert coding.spec(BASE).dictionary == SET.digest
    assert [text[:9] for text in said(caplog)] == ["set taken"]
    other = await client.coding(replace(BASE, weights=bytes(32)), "lexico")  # by its shape
    assert other.spec(BASE).namespace == coding.spec(BASE).namespace


async def test_the_line_names_a_command_that_helps(
    client: AsyncClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A set for files that the weights are not those of would not be found by the weights."""
    model = save_tiny(tmp_path / "model")
    for weights in (fingerprint_files(model), bytes(32)):
        await client.coding(replace(BASE, weights=weights), "paper", model=str(model))
    assert [text.rpartition(" ")[2] for text in said(caplog)] == ["--register", "--any-weights"]


async def test_the_line_says_what_it_costs(
    client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    large = make_spec(
        weights=bytes(32), geometry=Geometry(32, 8, 128, "bfloat16"), codec="lossless"
    )
    for codec in ("near", "balanced", "small"):
        await client.coding(large, codec)
    times = [int(text.split("up to ")[1].split(" times")[0]) for text in said(caplog)]
    assert 10 < times[0] < times[1] < times[2] < 200
    assert all("--codec lexico-residual --register" in text for text in said(caplog))


async def test_exact_weights_come_before_the_shape(client: AsyncClient) -> None:
    tuned, other = replace(BASE, weights=bytes(32)), small_dictionary(seed=1)
    await client.publish_dictionary(SET, BASE)
    assert (await client.coding(tuned, "paper")).waiting
    await client.publish_dictionary(SET, BASE, any_weights=True)
    await client.publish_dictionary(other, tuned)
    for spec, expected in ((BASE, SET), (tuned, other), (replace(BASE, weights=b"x" * 32), SET)):
        coding = await client.coding(spec, "paper")
        assert coding.spec(spec).dictionary == expected.digest
    assert await client.take_back_dictionary(tuned) != ()
    coding = await client.coding(tuned, "paper")
    assert coding.spec(tuned).dictionary == SET.digest
    assert await client.take_back_dictionary(BASE) == ("lexico", "lexico-adaptive")
    assert not (await client.coding(BASE, "paper")).waiting  # the shape's is still there
    assert await client.take_back_dictionary(BASE, any_weights=True) != ()
    assert (await client.coding(BASE, "paper")).waiting
    assert await client.take_back_dictionary(BASE, any_weights=True) == ()


async def test_both_nodes_agree_by_threads_too(service: Service, tmp_path: Path) -> None:
    with (
        Client(transport=service, dictionaries_dir=tmp_path / "a", timeouts=EAGER) as one,
        Client(transport=service, dictionaries_dir=tmp_path / "b", timeouts=EAGER) as two,
    ):
        first, second = one.coding(BASE, "paper"), two.coding(BASE, "paper")
        assert first.waiting
        assert second.waiting
        one.publish_dictionary(SET, BASE)
        for coding in (first, second):
            wait_until(lambda c=coding: c.spec(BASE) != BASE, "the set")  # type: ignore[misc]
        assert first.spec(BASE).namespace == second.spec(BASE).namespace
        cache = random_cache(BASE, 4)
        one.offload(first.spec(BASE), TOKENS, views_of(first.spec(BASE), cache))
        assert two.load(second.spec(BASE), TOKENS, Landing(second.spec(BASE))).pages == 4


# Pages of before


async def test_lossless_pages_are_found_for_a_while(client: AsyncClient, service: Service) -> None:
    coding = await client.coding(BASE, "paper")
    cache = random_cache(BASE, 4)
    await client.offload(coding.spec(BASE), TOKENS, views_of(BASE, cache))
    assert await client.spec_to_load(coding, BASE, TOKENS, timeout=3.0) == (BASE, 3.0)
    assert await client.spec_to_load(coding, BASE, TOKENS) == (BASE, None)
    service.offer(SET)
    now = await taken(coding)
    assert coding.former(BASE) is BASE

    async def chosen(recent: int = 1) -> CacheSpec:
        service.matched.clear()
        found = await client.spec_to_load(coding, BASE, TOKENS, recent_tokens=recent)
        assert found.timeout is not None
        assert 0 < found.timeout <= PATIENT.load
        return found.spec

    assert await chosen() is BASE
    assert service.matched == [now.namespace, BASE.namespace]
    landing = Landing(BASE)
    assert (await client.load(await chosen(), TOKENS, landing)).pages == 4
    assert torch.equal(landing.cache.view(torch.uint8), cache.view(torch.uint8))
    # A shorter prefix of now is no better; one that is as long as can be used is.
    await client.offload(now, TOKENS[: 2 * PAGE_TOKENS], views_of(now, cache))
    assert await chosen() is BASE
    assert await chosen(recent=len(TOKENS) - 2 * PAGE_TOKENS) == now
    assert service.matched == [now.namespace]
    await client.offload(now, TOKENS, views_of(now, cache))
    assert await chosen() == now
    assert service.matched == [now.namespace]
    service.pages.clear()
    assert await chosen() == now  # of two misses that of now


async def test_what_the_service_does_is_not_raised(client: AsyncClient, service: Service) -> None:
    service.offer(SET)
    coding = await client.coding(BASE, "paper")
    for error in (errors.Unavailable("away"), errors.Busy("full")):

        async def match(request: object, timeout: float, raised: Exception = error) -> None:
            raise raised

        service.match = match  # type: ignore[assignment,method-assign]
        found = await client.spec_to_load(coding, BASE, TOKENS)
        assert found.spec == coding.spec(BASE)
    with pytest.raises(errors.TokenCountMismatch):
        await client.spec_to_load(coding, BASE, [[1]])  # type: ignore[list-item]


async def test_once_the_pages_are_gone_nobody_asks_for_them(
    client: AsyncClient, service: Service
) -> None:
    async def find(request: pb.FindRequest, timeout: float) -> pb.FindResponse:
        return pb.FindResponse(digest=SET.digest, age_s=3600.0, page_ttl_s=60.0)

    service.offer(SET)
    service.find = find  # type: ignore[method-assign]
    coding = await client.coding(BASE, "paper")
    assert coding.former(BASE) is None
    assert (await client.spec_to_load(coding, BASE, TOKENS)).timeout is None
    assert service.matched == []


# Sets that do not fit, and services that do not answer


async def test_a_set_of_another_model_is_refused_once(
    client: AsyncClient, service: Service, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = small_dictionary(layers=4)
    with pytest.raises(errors.DictionaryMismatch, match="4 layers, not 5"):
        await client.publish_dictionary(wrong, BASE)
    service.offer(wrong)
    coding = await client.coding(BASE, "paper")
    refused, start = said(caplog)
    assert "published set not taken for the model with preset paper, running lossless" in refused
    assert "4 layers, not 5" in refused
    assert start.startswith("no set for the model")
    finds = service.finds
    await until(lambda: coding.spec(BASE) is None or service.finds > finds + 2, "further looks")
    assert (coding.waiting, service.fetches, len(said(caplog))) == (True, 1, 2)
    assert metrics.snapshot()[CLIENT_SETS_REFUSED] == {("dictionary-mismatch",): 1}
    service.offer(SET)
    assert (await taken(coding)).dictionary == SET.digest


async def test_bytes_of_another_set_are_none_of_it(
    client: AsyncClient, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.offer(SET)
    service.dictionaries[SET.digest] = small_dictionary(seed=1)
    coding = await client.coding(BASE, "paper")
    assert coding.waiting
    assert "reason=damaged-frame" in said(caplog)[0]
    fetches = service.fetches
    await until(lambda: coding.spec(BASE) is None or service.fetches > fetches, "another try")
    service.dictionaries[SET.digest] = SET
    assert (await taken(coding)).dictionary == SET.digest
    assert len([text for text in said(caplog) if "not taken" in text]) == 1


async def test_a_server_of_before_is_named_and_asked_again(
    client: AsyncClient, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.refuses = errors.Unsupported("Method not found!")
    coding = await client.coding(BASE, "paper")
    (line,) = said(caplog)
    assert "could not be asked for, unsupported: a server of an earlier release?)" in line
    service.refuses = None
    service.offer(SET)
    await taken(coding)


@pytest.mark.parametrize("error", [errors.Unavailable("away"), errors.QuotaExceeded("calls")])
async def test_a_service_that_does_not_answer_is_no_news(
    client: AsyncClient,
    service: Service,
    caplog: pytest.LogCaptureFixture,
    error: errors.LexicoError,
) -> None:
    service.refuses = error
    coding = await client.coding(BASE, "paper")
    await until(lambda: coding.spec(BASE) is None or service.finds > 3, "further looks")
    assert len(said(caplog)) == 1
    assert f"could not be asked for, {error.reason})" in said(caplog)[0]
    assert coding.waiting


async def test_failures_make_looks_rare_but_never_end_them() -> None:
    now, kicks = [0.0], [0]

    def kick(coding: Coding) -> None:
        kicks[0] += 1

    async def find(request: pb.FindRequest) -> pb.FindResponse:
        raise errors.Unavailable("away")

    async def fetch(digest: bytes) -> DictionarySet:
        raise AssertionError

    coding = Coding(
        BASE,
        "paper",
        None,
        None,
        model="",
        every=10.0,
        counts=CodingCounts(Metrics()),
        kick=kick,
        clock=lambda: now[0],
    )
    pauses = []
    for _ in range(12):
        await coding.look(find, fetch)
        began = now[0]
        while not kicks[0]:
            now[0] += 0.5
            coding.spec(BASE)
        pauses.append(now[0] - began)
        kicks[0] = 0
    most = 10.0 * _MOST_WAITING
    assert 15.0 <= pauses[0] <= 25.5
    assert all(most * (1 - _JITTER) <= pause <= most * (1 + _JITTER) + 0.5 for pause in pauses[4:])
    assert len(set(pauses[4:])) > 1  # nodes do not ask together
    coding.spec(BASE)
    assert not kicks[0]  # one that led nowhere is repeated, and not at once


# Refusals at the start


async def test_who_wants_no_lossless_pages_gets_the_error(client: AsyncClient) -> None:
    says = r"preset paper needs a set trained with `lexico train --codec lexico` for this model"
    with pytest.raises(errors.ConfigurationError, match=says):
        await client.coding(BASE, "paper", without_set="refuse")
    with pytest.raises(errors.ConfigurationError, match="without_set='strict': lossless or refuse"):
        await client.coding(BASE, "paper", without_set="strict")  # type: ignore[arg-type]


async def test_what_can_never_code_is_refused_at_once(client: AsyncClient) -> None:
    with pytest.raises(errors.ConfigurationError, match="codec lexico: pages without a set"):
        await client.coding(small_spec("lexico", dictionary=SET.digest), "paper")
    with pytest.raises(errors.UnknownCodec):
        await client.coding(BASE, "best")
    with pytest.raises(errors.DictionaryMismatch):
        await client.coding(BASE, "paper", dictionary=small_dictionary(layers=4))


async def test_nobody_is_asked_where_there_is_a_set_or_need_of_none(
    client: AsyncClient, service: Service, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    given = await client.coding(BASE, "paper", dictionary=SET)
    named = await client.coding(BASE, "paper", dictionary=SET.digest)
    plain = await client.coding(BASE, "lossless")
    assert given.spec(BASE) == named.spec(BASE)
    assert plain.spec(BASE) is BASE
    assert (given.dictionary, named.dictionary, plain.dictionary) == (SET, None, None)
    assert (service.finds, said(caplog)) == (0, [])
    assert models(metrics) == {("lexico", "given"): 2, ("lossless", "not-needed"): 1}


async def test_a_closed_client_asks_no_more(service: Service, tmp_path: Path) -> None:
    client = AsyncClient(transport=service, dictionaries_dir=tmp_path, timeouts=EAGER)
    coding = await client.coding(BASE, "paper")
    coding.spec(BASE)
    await client.close()
    finds = service.finds
    assert coding.spec(BASE) is BASE
    assert service.finds == finds
    with pytest.raises(errors.Cancelled):
        await client.coding(BASE, "paper")


# Names


def test_names_of_a_model() -> None:
    rope = Rope(inv_freq=(1.0, 0.5))
    shape = Geometry(5, 3, 16, "float16", rope)
    exact, same = model_names(bytes(32), shape)
    assert len({exact, same}) == 2
    assert {len(exact), len(same)} == {32}
    assert model_names(bytes(32), replace(shape, dtype="bfloat16")) == (exact, same)
    assert model_names(b"w" * 32, shape)[1] == same
    others = (
        replace(shape, layers=6),
        replace(shape, kv_heads=1),
        replace(shape, head_dim=8),
        replace(shape, rope=None),
        replace(shape, rope=Rope(inv_freq=(1.0, 0.4))),
    )
    names = {name for other in others for name in model_names(bytes(32), other)}
    assert len(names) == 2 * len(others)
    assert names.isdisjoint({exact, same})
    with pytest.raises(errors.InvalidInput, match="32 bytes, not 5"):
        model_names(b"short", shape)
