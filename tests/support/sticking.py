"""Threads that are stuck, and calls that must end all the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from lexico_proto import errors
from tests.support.waiting import PATIENCE_S


class Sticking:
    """Something that a worker thread comes to and does not get out of, until it is let go."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self._release = threading.Event()
        self.left = 0

    def __call__(self, *arguments: object) -> None:
        self.inside.set()
        self._release.wait(PATIENCE_S)
        self.left += 1

    def let_go(self) -> None:
        self._release.set()


def in_time(call: Callable[[], Any]) -> Any:
    """What a call gives that must end by itself, though a thread of its client is stuck."""
    outcome = list[Any]()

    def run() -> None:
        try:
            outcome.append(call())
        except errors.LexicoError as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert outcome, "the call waits beyond its deadline"
    return outcome[0]
