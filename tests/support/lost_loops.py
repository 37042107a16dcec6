"""Ways in which the loop of an adapter's service is lost, and threads that are held at the memory
which they decode into."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import pytest

from lexico_client import _load
from lexico_client.engines._service import Service
from lexico_codec import pages
from tests.support.waiting import PATIENCE_S, wait_until


def end(service: Service) -> None:
    """Its thread ends under what runs."""

    async def leave() -> None:
        raise SystemExit(3)

    call = service.begin(leave())
    wait_until(lambda: service.closed and call.ended.is_set(), "the loop to end")
    with suppress(SystemExit):
        call.result()


class Stuck:
    """The loop is blocked, until it is let go on."""

    def __init__(self, service: Service) -> None:
        self._go_on, blocked = threading.Event(), threading.Event()

        async def stick() -> None:
            blocked.set()
            self._go_on.wait(PATIENCE_S)

        self._call = service.begin(stick())
        assert blocked.wait(PATIENCE_S)

    def go_on(self) -> None:
        self._go_on.set()
        wait_until(self._call.ended.is_set, "the loop to go on")


class HeldThread:
    """Holds whoever decodes, with the right to the memory, before it writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there, self.go_on = threading.Event(), threading.Event()
        self.left = threading.Event()
        decode = pages.decode_group

        def held(*args: Any) -> None:
            self.there.set()
            self.go_on.wait(PATIENCE_S)
            decode(*args)
            self.left.set()

        monkeypatch.setattr(_load, "decode_group", held)
