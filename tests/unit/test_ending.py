"""How a shutdown shares out its time, and what becomes of pages in work."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from lexico_proto import errors
from lexico_services.ending import BEYOND_DRAIN_S, Ending
from lexico_services.supervisor import CLEARING_S
from lexico_worker import deployment
from lexico_worker.config import EncoderConfig
from tests.support.waiting import PATIENCE_S, lingering, until


def test_one_deadline_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("lexico_services.ending.time.monotonic", lambda: now)
    ending = Ending(drain_s=15)
    whole = ending.left()
    assert 15 < whole <= 15 + BEYOND_DRAIN_S - CLEARING_S
    now += 100.0  # it has not begun
    assert ending.left() == whole
    ending.begin()
    now += 10.0
    ending.begin()
    assert ending.left() == pytest.approx(whole - 10)
    assert ending.left(reserve_s=4) == pytest.approx(whole - 14)
    now += 100.0
    assert ending.left() == 0.0


class Pages:
    """A page encoder that stops between two groups, some time after it is told to."""

    def __init__(self, said: list[str]) -> None:
        self.said = said
        self.group_ends = threading.Event()

    def encode_page(
        self, job: object, page: object, cancelled: threading.Event, progress: object
    ) -> object:
        self.said.append("leased")
        cancelled.wait(PATIENCE_S)
        self.said.append("told to stop")
        self.group_ends.wait(PATIENCE_S)
        self.said.append("lease given back")
        raise errors.Cancelled("the caller went away")


async def test_an_encoder_that_ends_gives_leases_back_before_its_store_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    pages = Pages(said)

    class Store:
        def close(self) -> None:
            said.append("store closed")

    monkeypatch.setattr(deployment, "open_store", lambda *_: Store())
    monkeypatch.setattr("lexico_worker.page_encoder.PageEncoder", lambda *_, **__: pages)
    end: Any = deployment.Encoder.__del__
    monkeypatch.delattr(deployment.Encoder, "__del__")  # Serve awaits it, the collector does not
    encoder: Any = deployment.Encoder(EncoderConfig("redis://127.0.0.1"))
    job = SimpleNamespace(fullness=0.0)
    calls = [asyncio.create_task(encoder.encode(job, [])) for _ in range(2)]
    await until(lambda: len(said) == 2, "both pages in work")
    calls[0].cancel()  # as Serve does where the caller went away
    going = asyncio.create_task(end(encoder))
    await until(lambda: said.count("told to stop") == 2, "both pages told")
    await lingering()
    assert "store closed" not in said
    pages.group_ends.set()
    await going
    assert said[-3:] == ["lease given back"] * 2 + ["store closed"]
    assert (await calls[1])[0] == errors.Cancelled.reason
