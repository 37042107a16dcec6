"""Sets that cannot be taken over, services that do not answer, and refusals at the start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lexico_client import AsyncClient, Coding
from lexico_client._coding import _JITTER, _MOST_WAITING
from lexico_client._coding_counts import CodingCounts
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.sets.models import model_names
from lexico_proto import errors
from lexico_proto.metrics import CLIENT_SETS_REFUSED, Metrics
from lexico_proto.v1 import dictionaries_pb2 as pb
from tests.support.client_fixtures import small_dictionary, small_spec
from tests.support.waiting import until
from tests.support.without_set import (
    BASE,
    EAGER,
    SET,
    Service,
    client,
    metrics,
    models,
    said,
    service,
    taken,
)

__all__ = ["client", "metrics", "service"]  # fixtures


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
    says = "preset paper needs a set trained with `lexico train --codec lexico` for this model"
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
