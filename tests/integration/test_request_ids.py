"""The request id of a call: from the client into the server's log, and back in an error."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from lexico_client import (
    AsyncClient,
    CallEnded,
    GrpcTransport,
    LoadEnded,
    Observer,
    OffloadEnded,
    request,
)
from lexico_proto import errors, request_id
from lexico_proto.logs import formatter
from lexico_proto.metrics import CLIENT_RETRIES, CLIENT_TOKENS, Metrics
from lexico_proto.v1 import reload_pb2
from tests.support.client_fixtures import PATIENT
from tests.support.newer_frames import of_version
from tests.support.services import Prompt, prompt, running_services, serialised
from tests.support.waiting import PATIENCE_S, until


class Lines(logging.Handler):
    """What a server would write."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(formatter("text"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def log() -> Any:
    handler, logger = Lines(), logging.getLogger("lexico_services")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class Heard(Observer):
    def __init__(self) -> None:
        self.calls: list[CallEnded] = []
        self.loads: list[LoadEnded] = []
        self.offloads: list[OffloadEnded] = []

    def call_ended(self, call: CallEnded) -> None:
        self.calls.append(call)

    def load_ended(self, load: LoadEnded) -> None:
        self.loads.append(load)

    def offload_ended(self, offload: OffloadEnded) -> None:
        self.offloads.append(offload)


def node(services: Any, folder: Path, observer: Observer, metrics: Metrics) -> AsyncClient:
    return AsyncClient(
        reload=services.reload_address,
        offload=services.offload_address,
        dictionaries_dir=folder,
        timeouts=PATIENT,
        metrics=metrics,
        observer=observer,
    )


def target(made: Prompt) -> Any:
    return lambda _: lambda _, group: torch.empty(made.spec.group_shape(group))


async def test_an_application_hears_of_its_calls_loads_and_offloads(tmp_path: Path) -> None:
    made, heard, metrics = prompt(), Heard(), Metrics()
    async with running_services() as services, node(services, tmp_path, heard, metrics) as client:
        with request("mine-1"):
            missed = await client.load(made.spec, made.token_ids, target(made))
        report = await client.offload(made.spec, made.token_ids, lambda p, g: made.pages[p][g])
        loaded = await client.load(made.spec, made.token_ids, target(made))
        with pytest.raises(errors.ShapeMismatch):
            await client.offload(
                made.spec, [*range(10)], lambda p, g: torch.zeros(1, dtype=torch.float32)
            )
    miss, hit = heard.loads
    assert (missed.pages, miss.miss, miss.loaded_tokens, miss.request) == (0, "absent", 0, "mine-1")
    assert (hit.codec, hit.asked_tokens, hit.matched_tokens, hit.loaded_tokens, hit.miss) == (
        *("raw", 10, 10, 10),
        None,
    )
    assert hit.bytes_received == loaded.bytes_received
    assert hit.seconds == loaded.seconds.total
    stored, failed = heard.offloads
    assert (stored.tokens, stored.pages_stored, stored.error) == (10, 2, None)
    assert (stored.bytes_sent, stored.bytes_stored) == (report.bytes_sent, report.bytes_stored)
    assert (failed.tokens, failed.error) == (0, "shape-mismatch")
    assert [call.method for call in heard.calls[:4]] == ["match", "match", "put", "match"]
    assert heard.calls[0].request == "mine-1"
    assert len({each.request for each in (miss, hit, stored, failed)}) == 4
    assert {call.request for call in heard.calls} == {
        each.request for each in (miss, hit, stored, failed)
    }
    tokens = metrics.snapshot()[CLIENT_TOKENS]
    assert tokens == {
        ("raw", "asked"): 20,
        ("raw", "matched"): 10,
        ("raw", "loaded"): 10,
        ("raw", "offloaded"): 10,
    }


async def test_an_observer_that_fails_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Observer):
        def call_ended(self, call: CallEnded) -> None:
            raise RuntimeError("mine")

        load_ended = call_ended  # type: ignore[assignment]

    made = prompt()
    async with (
        running_services() as services,
        node(services, tmp_path, Failing(), Metrics()) as client,
    ):
        assert (await client.load(made.spec, made.token_ids, target(made))).pages == 0
    assert caplog.text.count("an observer failed") == 2


async def test_retries_are_counted(tmp_path: Path) -> None:
    made, metrics = prompt(), Metrics()
    async with (
        running_services() as services,
        node(services, tmp_path, Observer(), metrics) as client,
    ):
        answers, match = [errors.StoreUnavailable("once")], services.store.match

        def once(*asked: Any, **more: Any) -> Any:
            if answers:
                raise answers.pop()
            return match(*asked, **more)

        services.store.match = once  # type: ignore[method-assign]
        assert (await client.match(made.spec, made.token_ids)).pages == 0
    assert metrics.snapshot()[CLIENT_RETRIES] == {(): 1}


async def test_every_line_of_a_call_has_its_id(tmp_path: Path, log: list[str]) -> None:
    made = prompt(pages=1)
    async with (
        running_services() as services,
        node(services, tmp_path, Observer(), Metrics()) as client,
    ):
        await client.offload(made.spec, made.token_ids, lambda p, g: made.pages[p][g])
        read = services.store.read_frames
        services.store.read_frames = lambda *asked: [  # type: ignore[method-assign]
            of_version(frame, 3) if isinstance(frame, bytes) else frame for frame in read(*asked)
        ]
        log.clear()
        with request("abc"):
            await client.load(made.spec, made.token_ids, target(made))
        await until(lambda: len(log) >= 3, "Match and Get have ended", lambda: log)
        lines = log.copy()
    assert [line.rpartition(" ")[2] for line in lines] == ["request=abc"] * len(lines)
    assert [line for line in lines if "newer pages=1" in line]  # written in a thread
    assert [line for line in lines if "call=get outcome=" in line]


@pytest.mark.parametrize("given", ["", "mine.7", "no good"])
async def test_an_error_names_the_call(given: str, log: list[str]) -> None:
    made = prompt()
    async with running_services() as services:
        transport = GrpcTransport(services.reload_address, services.offload_address)
        with request(given) as name:
            with pytest.raises(errors.StreamTruncated) as caught:
                await transport.put(serialised(made.upload()[:-1]), PATIENCE_S)
        await transport.close()
        assert caught.value.request_id == name
        assert caught.value.__notes__ == [f"request={name}"]
        assert (name == given) is (given == "mine.7")
        assert log[-1].endswith(f"outcome=stream-truncated request={name}")
        # One that is no client of ours, and gives none.
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await services.reload.Match(reload_pb2.MatchRequest(page_keys=[b"x"]))
        made_there = request_id.given_in(raw.value.trailing_metadata())  # type: ignore[arg-type]
        assert re.fullmatch("[0-9a-f]{16}", made_there)
        assert log[-1].endswith(f"request={made_there}")


def test_errors_of_this_process_have_no_id() -> None:
    assert errors.Busy("x").request_id == ""
