"""Where the ingress sends pages: Ray Serve's Encoder, or threads of this process."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from lexico_codec.pieces import Piece
from lexico_proto.errors import ERRORS, Busy, EncoderLost, InternalError
from lexico_proto.metrics import ENCODER_RETRIES, PROCESS, Metrics
from lexico_services.admission import to_the_end
from lexico_worker.page_encoder import PageDone, PageEncoder, PageJob

_SERVE_ANSWERS_S: Final = 2.0
"""Longest wait for what Serve says of encoders."""


class LocalEncoders:
    """Encodes in threads of this process: tests, and nodes without Ray."""

    def __init__(self, encoder: PageEncoder, threads: int = 1) -> None:
        """
        Args:
            encoder: what does the work.
            threads: pages encoded at a time.
        """
        self._encoder = encoder
        self._count = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")

    async def place(self, page: list[Piece]) -> Any:
        """The pieces as they are: threads read this process's memory."""
        return page.copy()

    async def encode(self, job: PageJob, placed: Any) -> PageDone:
        """As `PageEncoder.encode_page`."""
        cancelled = threading.Event()
        loop = asyncio.get_running_loop()
        work = self._encoder.encode_page
        try:
            return await loop.run_in_executor(self._pool, work, job, placed, cancelled)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def running(self) -> int | None:
        """The threads."""
        return self._count

    def close(self) -> None:
        """Waits for the threads."""
        self._pool.shutdown()


def near_first(handle: Any) -> Any:
    """A handle of the Encoder that has made no call, told to call encoders of its own node first.
    Encoders elsewhere are called where those are full: a page crosses the network only then.
    """
    handle._init(_prefer_local_routing=True)
    return handle


class RayEncoders:
    """Encodes in the Encoder deployment, by handle, with pages in Ray's shared memory."""

    def __init__(self, handle: Any, metrics: Metrics = PROCESS) -> None:
        """
        Args:
            handle: a `ray.serve.handle.DeploymentHandle` of the Encoder.
            metrics: where second tries are counted.
        """
        self._retries = metrics.counter(ENCODER_RETRIES)
        import ray
        from ray import exceptions
        from ray.serve.exceptions import (
            BackPressureError,
            DeploymentUnavailableError,
            RayServeException,
        )

        self._ray = ray
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="place")
        self._handle = handle
        self._full = BackPressureError
        self._ray_errors = (exceptions.RayError, RayServeException)
        # A replica that died, or is not reachable, may or may not have run the call; PageEncoder is
        # idempotent, so the call may be made again. Nothing else may: an error of the call itself
        # would come back the same.
        self._deaths = (
            exceptions.ActorDiedError,
            exceptions.ActorUnavailableError,
            DeploymentUnavailableError,
        )

    async def place(self, page: list[Piece]) -> Any:
        """Copies the pieces into shared memory, as one object.

        In a thread: the copy holds no lock of Python's, and other pages go on meanwhile. A caller
        that goes away waits for it, so that the bytes are counted while they are here.
        """
        return await to_the_end(self._threads, partial(self._ray.put, page))

    async def encode(self, job: PageJob, placed: Any) -> PageDone:
        """One call to an encoder; a second where the first encoder died.

        Raises:
            Busy: every encoder's queue is full.
            EncoderLost: the second one died too.
            LexicoError: what the encoder reports.
        """
        for attempt in (1, 2):
            try:
                answer = await self._call(job, placed)
            except self._full:
                raise Busy("every encoder's queue is full: try again later, or recompute") from None
            except self._deaths as error:
                if attempt == 2:
                    raise EncoderLost(
                        f"page {job.page}: two encoders died with it ({type(error).__name__})"
                    ) from None  # the cause would keep the page in shared memory alive
                self._retries.add()
                continue
            if isinstance(answer, PageDone):
                return answer
            reason, message = answer
            raise ERRORS.get(reason, InternalError)(message)
        raise InternalError("unreachable")

    async def running(self) -> int | None:
        """Replicas of the Encoder that run, as Serve has it."""
        try:
            return await asyncio.wait_for(asyncio.to_thread(_replicas), _SERVE_ANSWERS_S)
        except (LookupError, RuntimeError, TimeoutError, *self._ray_errors):
            return None

    async def _call(self, job: PageJob, placed: Any) -> Any:
        response = self._handle.encode.remote(job, placed)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()  # not implied by cancelling the await
            raise


def _replicas() -> int:
    """Of the application that this ingress is of. Blocks."""
    from ray import serve

    own = serve.get_replica_context().app_name
    status = serve.status().applications[own].deployments["Encoder"]
    return sum(n for state, n in status.replica_states.items() if state == "RUNNING")
