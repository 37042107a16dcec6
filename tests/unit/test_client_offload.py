"""What an offload checks, and how often it tries."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest
import torch

from lexico_client import AsyncClient, InMemoryTransport
from lexico_codec.put_messages import parse_put
from lexico_proto import errors
from lexico_proto.v1 import offload_pb2 as offload
from lexico_proto.v1 import reload_pb2 as reload
from tests.support.client_fixtures import PATIENT, TOKENS, random_cache, small_spec, views_of

SPEC = small_spec()


class Failing(InMemoryTransport):
    """Raises the given errors first, one a call."""

    def __init__(self, *failures: errors.LexicoError) -> None:
        super().__init__()
        self.failures = list(failures)
        self.puts = 0
        self.answer: offload.PutResponse | None = None

    async def match(self, request: reload.MatchRequest, timeout: float) -> reload.MatchResponse:
        if self.failures and not self.puts:
            raise self.failures.pop(0)
        return await super().match(request, timeout)

    async def put(
        self, messages: AsyncGenerator[bytes, None], timeout: float
    ) -> offload.PutResponse:
        self.puts += 1
        response = await super().put(messages, timeout)
        if self.failures:
            raise self.failures.pop(0)
        return self.answer or response


@pytest.fixture
def failing() -> Failing:
    return Failing()


@pytest.fixture
async def client(failing: Failing, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(
        transport=failing, dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        yield client


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 2, 8, 3, 16),
        torch.zeros(2, 2, 8, 3, 15).half(),
        torch.zeros(1, 2, 8, 3, 16).half(),
    ],
    ids=["dtype", "head_dim", "layers"],
)
async def test_a_tensor_that_does_not_fit_the_spec(
    client: AsyncClient, tensor: torch.Tensor
) -> None:
    with pytest.raises(errors.ShapeMismatch, match="page 0 group 0"):
        await client.offload(SPEC, TOKENS, lambda page, group: tensor)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("wait", ["committed", "received"])
async def test_a_cache_that_is_not_finite(client: AsyncClient, value: float, wait: str) -> None:
    cache = random_cache(SPEC, 4)
    cache[4, 0, 25, 2, 15] = value
    with pytest.raises(errors.NonFiniteCache, match="page 3 group 2"):
        await client.offload(SPEC, TOKENS, views_of(SPEC, cache), wait=wait)  # type: ignore[arg-type]


async def test_a_source_that_fails(client: AsyncClient, failing: Failing) -> None:
    def source(page: int, group: int) -> torch.Tensor:
        raise ZeroDivisionError("the engine's own")

    with pytest.raises(ZeroDivisionError):
        await client.offload(SPEC, TOKENS, source)
    with pytest.raises(TypeError, match=r"no torch\.Tensor"):
        await client.offload(SPEC, TOKENS, lambda page, group: [])  # type: ignore
    assert failing.pages == {}


async def test_a_source_whose_own_time_is_over(client: AsyncClient) -> None:
    """It is not said that our deadline passed."""

    def source(page: int, group: int) -> torch.Tensor:
        raise TimeoutError("the engine's lock")

    with pytest.raises(TimeoutError, match="the engine's lock"):
        await client.offload(SPEC, TOKENS, source)


async def test_more_pages_than_tokens(client: AsyncClient) -> None:
    with pytest.raises(errors.TokenCountMismatch, match="35 token ids make 4 pages"):
        await client.offload(SPEC, TOKENS, views_of(SPEC, random_cache(SPEC, 5)), pages=5)
    with pytest.raises(errors.InvalidInput, match="wait"):
        await client.offload(SPEC, TOKENS, views_of(SPEC, random_cache(SPEC, 4)), wait="never")  # type: ignore


@pytest.mark.parametrize("durability", ["committed", "received"])
async def test_the_header_says_what_is_waited_for(
    failing: Failing, client: AsyncClient, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[offload.PutHeader] = []

    async def put(messages: AsyncGenerator[bytes, None], timeout: float) -> offload.PutResponse:
        async for message in messages:
            part = parse_put(message)
            if isinstance(part, offload.PutHeader):
                seen.append(part)
        results = [
            offload.PageResult(page=page, outcome=offload.PAGE_OUTCOME_RECEIVED)
            for page in seen[0].pages
        ]
        return offload.PutResponse(pages=results, seconds=offload.StageSeconds(receive=2.5))

    monkeypatch.setattr(failing, "put", put)
    source = views_of(SPEC, random_cache(SPEC, 4))
    report = await client.offload(SPEC, TOKENS, source, pages=3, wait=durability)  # type: ignore
    assert report.pages == ("received",) * 3
    assert report.seconds.receive == 2.5
    assert list(seen[0].token_ids) == TOKENS[:24]
    assert offload.Durability.Name(seen[0].durability) == f"DURABILITY_{durability.upper()}"


async def test_once_more_where_the_service_was_away(failing: Failing, client: AsyncClient) -> None:
    failing.failures = [errors.Unavailable("gone")]  # to the match
    source = views_of(SPEC, random_cache(SPEC, 4))
    assert (await client.offload(SPEC, TOKENS, source)).pages == ("stored",) * 4
    failing.pages.clear()
    failing.failures = [errors.Unavailable("gone")]  # after the put has stored everything
    report = await client.offload(SPEC, TOKENS, source)
    assert report.pages == ("present",) * 4


@pytest.mark.parametrize(
    ("failure", "puts"),
    [(errors.EncoderLost, 1), (errors.Busy, 1), (errors.InternalError, 1)],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_no_second_try_where_it_would_not_help(
    failing: Failing, client: AsyncClient, failure: type[errors.LexicoError], puts: int
) -> None:
    source = views_of(SPEC, random_cache(SPEC, 4))
    failing.puts, failing.failures = 0, []
    await client.match(SPEC, TOKENS)
    failing.puts = 1  # so that match lets the failure to the put
    failing.failures = [failure("no")]
    with pytest.raises(failure):
        await client.offload(SPEC, TOKENS, source)
    assert failing.puts == 1 + puts


@pytest.mark.parametrize(
    "answer",
    [
        offload.PutResponse(pages=[]),
        offload.PutResponse(
            pages=[
                offload.PageResult(page=p, outcome=offload.PAGE_OUTCOME_STORED)
                for p in (0, 1, 2, 2)
            ]
        ),
        offload.PutResponse(pages=[offload.PageResult(page=p) for p in range(4)]),
    ],
    ids=["none", "another", "unspecified"],
)
async def test_an_answer_that_does_not_fit(
    failing: Failing, client: AsyncClient, answer: offload.PutResponse
) -> None:
    failing.answer = answer
    with pytest.raises(errors.InternalError):
        await client.offload(SPEC, TOKENS, views_of(SPEC, random_cache(SPEC, 4)))
