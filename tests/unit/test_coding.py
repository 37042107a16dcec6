"""A model without a set: lossless until one is published, checked, and taken over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lexico_client import AsyncClient, Client, fingerprint_files
from lexico_codec.geometry import Geometry
from lexico_codec.spec import CacheSpec, make_spec
from lexico_proto import errors
from lexico_proto.metrics import Metrics
from lexico_proto.v1 import dictionaries_pb2 as pb
from tests.support.client_fixtures import (
    PAGE_TOKENS,
    PATIENT,
    TOKENS,
    Landing,
    random_cache,
    small_dictionary,
    views_of,
)
from tests.support.saved_model import save_tiny
from tests.support.waiting import wait_until
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
