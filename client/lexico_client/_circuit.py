"""A server that does not answer costs a node one slow call, and not each call its deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, cast

import grpc
import grpc.aio

from lexico_proto.breaker import Admission, Breaker
from lexico_proto.errors import REASON_METADATA_KEY, CircuitOpen, DeadlineExpired, LexicoError

HEALTH: Final = "/grpc.health.v1.Health/Check"
PROBE_S: Final = 1.0
"""Seconds that a server has to answer a probe."""
WAIT_S: Final = 0.1
"""Seconds that the call which began a probe waits for its answer: a server that is back answers
sooner, and none of the node's calls is to be slow for one that is not."""
_MOST: Final = 0.9
"""Of its time, after which a call that was cancelled has met its caller's deadline."""
_SILENT: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""What gRPC says itself where no server answered; it needs no server for it."""

Probe = Callable[[float], Awaitable[object]]
"""`(seconds)` → asks the server for its health."""


class Circuit:
    """Of one server, for one event loop at a time.

    Silence opens it: a deadline that passed without a word. What a server answers is its business,
    an error too. Once open, calls fail at once, and a health check by one of them decides.
    """

    def __init__(self, server: str, every_s: float, probe: Probe) -> None:
        """
        Args:
            server: for messages: `the reload server`.
            every_s: seconds from a silence to the next probe; 0 for a circuit that stays closed.
            probe: one health check.
        """
        self._every_s = every_s
        self._server = server
        self._ask = probe
        self._probing: asyncio.Task[None] | None = None
        self._breaker = Breaker(every_s, peer=server)

    def after_fork(self) -> None:
        """Knows nothing, and holds no lock of the parent's."""
        self._probing, self._breaker = None, Breaker(self._every_s, peer=self._server)

    async def enter(self) -> None:
        """Returns if the server may be called.

        Raises:
            CircuitOpen: it is not to be.
        """
        probing = self._probing
        if probing is not None and probing.get_loop() is not asyncio.get_running_loop():
            self._probing = None
            self._breaker.let_go()  # with a loop that has ended
        admission = self._breaker.admit()
        if admission is Admission.PROBE:
            self._probing = asyncio.create_task(self._probe(self._breaker))
            await asyncio.wait({self._probing}, timeout=WAIT_S)
            admission = Admission.REFUSED if self._breaker.open else Admission.CALL
        if admission is Admission.REFUSED:
            raise CircuitOpen(
                f"{self._server} was silent for {self._breaker.silent_s:.0f} s: it is asked every "
                f"{self._every_s:g} s whether it is back, and not by each call"
            )

    @contextmanager
    def listening(self, seconds: float) -> Iterator[None]:
        """Whether what a call meets in the block is silence.

        Args:
            seconds: that it listens; if it ends after them without a word, whoever ends it, its
                server was silent.
        """
        began, breaker = time.monotonic(), self._breaker

        def lost(after_s: float) -> None:
            silent_s = time.monotonic() - began
            if silent_s >= after_s:
                breaker.lost(silent_s)

        try:
            yield
        except grpc.aio.AioRpcError as error:
            if _is_answer(error):
                breaker.answered()
            elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                lost(0.0)
            raise
        except (asyncio.CancelledError, DeadlineExpired):
            lost(_MOST * seconds)
            raise
        breaker.answered()

    async def close(self) -> None:
        """Ends a probe that is under way."""
        probing, self._probing = self._probing, None
        if probing is not None and probing.get_loop() is asyncio.get_running_loop():
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)

    async def _probe(self, breaker: Breaker) -> None:
        began = time.monotonic()
        try:
            await self._ask(PROBE_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in _SILENT and not _is_answer(error):
                breaker.lost(time.monotonic() - began, probe=True)
            else:
                breaker.answered()
        except LexicoError:  # no channel: each call says so itself
            breaker.let_go()
        except BaseException:
            breaker.let_go()
            raise
        else:
            breaker.answered()


def _is_answer(error: grpc.aio.AioRpcError) -> bool:
    """Whether a server said it, and not gRPC on its behalf."""
    pairs = cast(Iterable[tuple[str, object]], error.trailing_metadata() or ())
    named = any(key == REASON_METADATA_KEY for key, _ in pairs)
    return named or error.code() not in (*_SILENT, grpc.StatusCode.CANCELLED)
