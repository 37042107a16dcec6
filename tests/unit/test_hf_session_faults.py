"""Whatever fails around an answer: the answer is the same, and its report says what failed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lexico_client import Client, InMemoryTransport
from lexico_client.engines.hf import _fed_tokens
from lexico_client.engines.hf._behind import Behind, Seldom
from lexico_client.hf import GenerateReport, HuggingFaceCache, Session
from lexico_proto import errors
from tests.support.answers import IDS, answer, made, tokens
from tests.support.client_fixtures import flipped
from tests.support.sessions import (
    PLAIN,
    STATIC_COUNTS,
    batch_of,
    ids_of,
    outcomes_of,
    sharing,
    warmed,
)
from tests.support.waiting import PATIENCE_S

ROWS = [ids_of(50, 1), ids_of(33, 2), ids_of(20, 3)]


class Service(InMemoryTransport):
    """One that can be away, full, or slow with what it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.away = self.full = False
        self.asked = 0
        self.taken = threading.Event()
        self.taken.set()
        self.began = threading.Event()

    async def match(self, request: Any, timeout: float) -> Any:
        self.asked += 1
        if self.away:
            raise errors.Unavailable("nobody is there")
        return await super().match(request, timeout)

    async def put(self, messages: Any, timeout: float) -> Any:
        self.began.set()
        self.taken.wait(PATIENCE_S)  # the client's own loop: nothing else is to go on
        if self.full:
            raise errors.QuotaExceeded("the tenant has what it may have")
        return await super().put(messages, timeout)


@pytest.fixture(scope="module")
def model() -> Any:
    return made("llama")


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def shared(model: Any, service: Service, tmp_path: Path) -> Iterator[HuggingFaceCache]:
    with sharing(model, tmp_path, service) as shared:
        yield shared
        service.taken.set()


def test_a_service_that_is_away_is_asked_once_a_batch(
    model: Any, service: Service, shared: HuggingFaceCache, caplog: pytest.LogCaptureFixture
) -> None:
    batch = batch_of(ROWS)
    expected = model.generate(**batch, **PLAIN)
    with Session(shared) as session:
        service.away = True
        session.generate(IDS, **PLAIN, offload=False)
        once, service.asked = service.asked, 0
        session.generate(**batch, **PLAIN, offload=False)
        assert service.asked == once
        got = session.generate(**batch, **PLAIN)
        assert torch.equal(got.output, expected)
        assert [type(each.reason) for each in got.report.prompts] == [errors.Unavailable] * 3
        assert [type(each.error) for each in got.report.offloads()] == [errors.Unavailable] * 3
        assert "nobody is there" in str(got.report)
        assert len([line for line in caplog.records if "offload failed" in line.message]) == 1
        service.away = False
        assert [each.error for each in session.generate(**batch, **PLAIN).report.offloads()] == [
            None
        ] * 3
        assert session.generate(**batch, **PLAIN).report.reloaded_tokens > 0


def test_a_service_that_is_full(model: Any, service: Service, shared: HuggingFaceCache) -> None:
    service.full = True
    with Session(shared) as session:
        got = session.generate(IDS, **PLAIN)
        assert torch.equal(got.output, model.generate(IDS, **PLAIN))
        assert [type(each.error) for each in got.report.offloads()] == [errors.QuotaExceeded]


def test_a_damaged_frame(model: Any, service: Service, shared: HuggingFaceCache) -> None:
    with Session(shared) as session:
        warmed(session, [IDS[0].tolist()])
        frames = list(service.pages.values())[3]
        frames[0] = flipped(frames[0])
        got = session.generate(IDS, **PLAIN)
        assert torch.equal(got.output, model.generate(IDS, **PLAIN))
        (prompt,) = got.report.prompts
        assert (prompt.reloaded_tokens, type(prompt.reason)) == (24, errors.DamagedFrame)


class Stuck:
    """A client one of whose loads leaves a thread in the memory of the pages that it did not give,
    to which it writes when it is told to."""

    def __init__(self, client: Client, pages: int) -> None:
        self._client = client
        self._pages = pages
        self._views: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def load(self, spec: Any, ids: Any, target: Any, **kwargs: Any) -> Any:
        def watched(pages: int) -> Any:
            self._views = target(pages)
            return self._views

        loaded = self._client.load(spec, ids, watched, **kwargs)
        if loaded.pages <= self._pages:
            return loaded
        self._spec, self._late = spec, range(self._pages, loaded.pages)
        tokens = self._pages * spec.page_tokens
        reason = errors.DeadlineExpired("load: a page was not decoded within the deadline")
        return replace(
            loaded,
            tokens=tokens,
            pages=self._pages,
            reason=reason,
            unfinished=threading.Event(),
        )

    def write(self) -> None:
        for page in self._late:
            for group in range(self._spec.groups):
                view = self._views(page, group)
                whole = torch.full(tuple(view.shape), float("nan"))
                view.copy_(whole) if isinstance(view, torch.Tensor) else view.write(whole)


@pytest.mark.parametrize("static", [False, True])
def test_memory_that_a_stuck_thread_still_writes_to(
    model: Any, shared: HuggingFaceCache, static: bool
) -> None:
    """It is not used for anything else: neither by a session, nor by the cache of a load."""
    if static and not STATIC_COUNTS:
        pytest.skip("static caches of this transformers are refused")
    settings = PLAIN | ({"cache_implementation": "static"} if static else {})
    other = ids_of(30, 9)
    with Session(shared) as session:
        warmed(session, [IDS[0].tolist()])
        stuck = Stuck(shared._client, 3)
        shared._client = stuck  # type: ignore[assignment]

        def late(batch: int, ids: torch.Tensor) -> list[int]:
            stuck.write()
            return list(range(97))

        batch = batch_of([other, IDS[0].tolist()])
        expected = model.generate(**batch, **PLAIN)
        got = session.generate(**batch, **settings, prefix_allowed_tokens_fn=late)
        assert torch.equal(got.output, expected)
        assert [each.reloaded_tokens for each in got.report.prompts] == [0, 24]
        assert set("".join(outcomes_of(got.report))) == {"p", "s"}
        hit = shared.load(IDS)
        assert hit.tokens == 24
        got_by_hand = answer(model, IDS, hit.inputs, prefix_allowed_tokens_fn=late)
        assert torch.equal(got_by_hand, answer(model, IDS))


def test_offloads_run_behind_answers_and_few_wait(
    model: Any, service: Service, shared: HuggingFaceCache, caplog: pytest.LogCaptureFixture
) -> None:
    service.taken.clear()
    session = Session(shared, max_pending=1)
    first = session.generate(IDS, **PLAIN)
    assert service.began.wait(PATIENCE_S)
    assert not first.report.offloaded
    with pytest.raises(errors.DeadlineExpired, match="has not ended"):
        first.report.offloads(timeout=0.0)
    assert not session.drain(timeout=0.0)
    # The loop of this client is held up: what is asked of it meanwhile is a session's own.
    refused = session._behind.begin(lambda: ())
    assert refused is None
    service.taken.set()
    assert session.drain()
    assert outcomes_of(first.report) == ["s" * 7]
    assert session.close()
    after = session.generate(IDS, **PLAIN)
    assert torch.equal(after.output, first.output)
    assert [type(each.error) for each in after.report.offloads()] == [errors.Busy]
    assert any("offload skipped" in line.message for line in caplog.records)


def test_what_waits_when_a_session_is_closed_is_told(
    service: Service, shared: HuggingFaceCache
) -> None:
    service.taken.clear()
    session = Session(shared)
    session.generate(IDS, **PLAIN)
    assert service.began.wait(PATIENCE_S)
    held = threading.Event()
    waiting: Any = session._behind.begin(lambda: (held.wait(), ())[1])
    report = GenerateReport((), 0, 0.0, waiting)
    assert not session.close(timeout=0.0)
    (outcome,) = report.offloads()
    assert isinstance(outcome.error, errors.Cancelled)
    service.taken.set()
    held.set()


def test_a_model_that_changes_while_it_generates(tmp_path: Path) -> None:
    model = made("llama")
    with sharing(model, tmp_path) as shared, Session(shared) as session:

        def change(batch: int, ids: torch.Tensor) -> list[int]:
            with torch.no_grad():
                model.model.embed_tokens.weight[3, 3] += 1
            return list(range(97))

        got = session.generate(IDS, **PLAIN, prefix_allowed_tokens_fn=change)
        (outcome,) = got.report.offloads()
        assert "changed while" in str(outcome.error)


def test_a_model_that_cannot_be_shared_any_more(tmp_path: Path) -> None:
    model = made("llama")
    with sharing(model, tmp_path, weights=bytes(32)) as shared, Session(shared) as session:
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(2)
        got = session.generate(IDS, **PLAIN)
        assert torch.equal(got.output, model.generate(IDS, **PLAIN))
        (prompt,) = got.report.prompts
        assert isinstance(prompt.reason, errors.ConfigurationError)
        assert prompt.reason is got.report.offloads()[0].error


def test_a_cache_that_is_not_finite(tmp_path: Path) -> None:
    model = made("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight.fill_(float("inf"))
    with sharing(model, tmp_path) as shared, Session(shared) as session:
        got = session.generate(IDS, **PLAIN)
        assert [type(each.error) for each in got.report.offloads()] == [errors.NonFiniteCache]


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
@pytest.mark.parametrize("where", ["_session.load_rows", "_session.prefixes"])
def test_memory_that_sharing_alone_needs(
    model: Any,
    shared: HuggingFaceCache,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: type[Exception],
) -> None:
    """Of the batch at once, before the answer; of what is copied, behind it."""

    def short(*given: Any, **named: Any) -> None:
        raise error("out of memory")

    with Session(shared) as session:
        warmed(session, [IDS[0].tolist()])
        monkeypatch.setattr(f"lexico_client.engines.hf.{where}", short)
        got = session.generate(IDS, **PLAIN)
        assert torch.equal(got.output, model.generate(IDS, **PLAIN))
        (outcome,) = got.report.offloads()
        assert isinstance(outcome.error, errors.Busy)
        assert "no memory for sharing" in str(outcome.error)
        reloaded = 0 if where.endswith("load_rows") else 48
        assert got.report.reloaded_tokens == reloaded


def test_what_generate_raises_leaves_nothing_behind(
    model: Any, service: Service, shared: HuggingFaceCache
) -> None:
    def broken(batch: int, ids: torch.Tensor) -> list[int]:
        raise KeyError("of the caller")

    with Session(shared) as session:
        with pytest.raises(KeyError, match="of the caller"):
            session.generate(IDS, **PLAIN, prefix_allowed_tokens_fn=broken)
        assert session.drain()
        assert service.pages == {}


def test_other_ids_than_the_model_was_given_are_not_offloaded(
    model: Any, service: Service, shared: HuggingFaceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a `generate` of somebody's own could return them."""
    generate = type(model).generate

    def other(self: Any, *args: Any, **kwargs: Any) -> Any:
        sequences = generate(self, *args, **kwargs)
        sequences[0, 20] = (sequences[0, 20] + 1) % 97
        sequences[0, 53] = (sequences[0, 53] + 1) % 97
        return sequences

    monkeypatch.setattr(type(model), "generate", other)
    with Session(shared) as session:
        report = session.generate(IDS, **PLAIN).report
        assert outcomes_of(report) == ["s" * 6], "up to the token that differs in the answer"


@pytest.mark.parametrize("hidden", ["forward", "positions"])
def test_what_was_not_seen_is_not_offloaded(
    model: Any, shared: HuggingFaceCache, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    noted = _fed_tokens.grow_fed

    def other(cache: Any, inputs: dict[str, Any]) -> Any:
        if hidden == "forward":
            return noted(cache, inputs | {"input_ids": None}) and inputs
        shifted = {"position_ids": inputs["position_ids"] + 1}
        return noted(cache, inputs | shifted) and inputs

    monkeypatch.setattr("lexico_client.engines.hf._watched_model.grow_fed", other)
    with Session(shared) as session:
        assert outcomes_of(session.generate(IDS, **PLAIN).report) == [""]


def test_what_a_forked_child_begins_with() -> None:
    """Its parent's thread is not there, and what that thread had to do is the parent's."""
    held = threading.Event()
    behind = Behind[bool]("behind", 1)
    started = behind.begin(held.wait)
    assert started is not None
    assert behind.begin(held.wait) is None
    behind.after_fork()
    own = behind.begin(lambda: True)
    assert own is not None
    assert own.result(PATIENCE_S)
    assert behind.close()
    held.set()
    assert started.result(PATIENCE_S)


def test_warnings_come_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [5.0]
    monkeypatch.setattr("lexico_client.engines.hf._behind.time.monotonic", lambda: clock[0])
    seldom = Seldom()
    with caplog.at_level(logging.WARNING):
        for at in (5.0, 6.0, 64.9, 65.0, 70.0):
            clock[0] = at
            seldom.warn("at=%s", at)
    assert [record.message for record in caplog.records] == ["at=5.0", "at=65.0"]


def test_sessions_of_several_threads(model: Any, shared: HuggingFaceCache) -> None:
    from concurrent.futures import ThreadPoolExecutor

    prompts = [torch.cat([IDS, tokens(4, seed=seed)], 1) for seed in range(5)]
    expected = [model.generate(ids, **PLAIN) for ids in prompts]
    with Session(shared, max_pending=9) as session, ThreadPoolExecutor(3) as pool:
        warmed(session, [IDS[0].tolist()])
        answers = list(pool.map(lambda ids: session.generate(ids, **PLAIN), prompts))
        for got, wanted in zip(answers, expected, strict=True):
            assert torch.equal(got.output, wanted)
            assert got.report.reloaded_tokens == 48
