"""The Encoder deployment of Ray Serve: a thin process around `PageEncoder`.

Ray may run a call again after a death, so a call must be idempotent: `PageEncoder` is. Work runs in
a thread pool: the replica's loop stays free for health checks and cancellation.

Whoever deploys it imports this module, and encodes nothing: torch is imported by the replica.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.config import AutoscalingPolicy

from lexico_proto import tracing
from lexico_proto.cgroup import cores
from lexico_proto.errors import InternalError, LexicoError
from lexico_proto.logs import log_to_stderr
from lexico_proto.metrics import OF_ENCODERS, PROCESS
from lexico_store import open_store
from lexico_worker.autoscaling import FULLNESS, LOOK_BACK_S, Fullness, encoders_wanted
from lexico_worker.config import EncoderConfig
from lexico_worker.malloc import keep_freed_memory

if TYPE_CHECKING:
    from lexico_codec.pieces import Piece
    from lexico_worker.page_encoder import PageDone, PageJob

_log = logging.getLogger(__name__)

STUCK_S = 900.0
"""A layer group that takes longer means a stuck device or store: the replica is then unhealthy."""

LEAVE_S = 0.1
"""Between two looks of a replica that is told to end, whether a call still runs. Serve's own two
seconds come before the first look, so every end would take them.
"""

Failure = tuple[str, str]
"""Reason and message of an error of our tree: errors cross processes as plain strings."""


LOGGERS = ("lexico_worker", "lexico_codec", "lexico_store", "lexico_proto")


class Encoder:
    """Encodes pages that arrive as references into shared memory, and commits them itself."""

    def __init__(self, config: EncoderConfig) -> None:
        import torch

        from lexico_worker.page_encoder import PageEncoder

        keep_freed_memory()
        log_to_stderr(config.log_level, config.log_format, LOGGERS)
        PROCESS.configure(max_open=0, count=config.count)  # no open label here
        tracing.start(config.tracing, "encoder")
        threads = config.threads or max(1, cores() // config.max_replicas)
        torch.set_num_threads(threads)
        device = "cuda" if config.num_gpus and torch.cuda.is_available() else "cpu"
        self._store = open_store(config.store_url, config.store)
        self._pages = PageEncoder(
            self._store,
            page_ttl_s=config.page_ttl_s,
            lease_ttl_s=config.lease_ttl_s,
            device=device,
            dictionary_cache_bytes=config.dictionary_cache_bytes,
            error_every=config.error_every if config.count else 0,
        )
        self._pool = ThreadPoolExecutor(config.ongoing_per_replica, thread_name_prefix="encode")
        self._running: dict[int, float] = {}
        self._cancels: set[threading.Event] = set()
        self._fullness = Fullness()
        _log.info("encoder=up device=%s threads=%d", device, torch.get_num_threads())

    async def encode(self, job: PageJob, page: list[Piece]) -> PageDone | Failure:
        """Encodes and commits one page.

        Args:
            job: which page.
            page: its raw bytes in pieces; passed as a top-level ObjectRef, they arrive as
                read-only views of shared memory.

        Returns:
            What was done, or reason and message of an error of our tree.
        """
        cancelled = threading.Event()
        self._cancels.add(cancelled)
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._pool, self._encode, job, page, cancelled)
        work.add_done_callback(lambda _: self._cancels.discard(cancelled))
        try:
            with self._fullness.of(job.fullness):
                return await asyncio.shield(work)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve asks for, for the policy in `autoscaling.py`."""
        return {FULLNESS: self._fullness.highest()}

    def _encode(
        self, job: PageJob, page: list[Piece], cancelled: threading.Event
    ) -> PageDone | Failure:
        thread = threading.get_ident()

        def progress() -> None:
            self._running[thread] = time.monotonic()

        progress()
        try:
            done = self._pages.encode_page(job, page, cancelled, progress)
            return replace(done, counted=PROCESS.take_changes(OF_ENCODERS))
        except LexicoError as error:
            return error.reason, error.message
        except Exception:  # noqa: BLE001 - the caller must hear of it, and only the log see why
            _log.exception("page=%s failed", job.page_key.hex()[:16])
            return InternalError.reason, "the encoder failed; its log has the traceback"
        finally:
            del self._running[thread]

    async def check_health(self) -> None:
        """Raises where a layer group takes too long: Serve then replaces the replica.

        The store is not asked: a store that is down is no reason to restart encoders.
        """
        now = time.monotonic()
        oldest = max((now - started for started in list(self._running.values())), default=0.0)
        if oldest > STUCK_S:
            raise RuntimeError(f"a layer group has been in work for {oldest:.0f} s")

    async def pid(self) -> int:
        """Process id, for tests that kill it and benchmarks that weigh it."""
        return os.getpid()

    async def __del__(self) -> None:
        """Pages in work end after their layer group, and give their leases back: only then does the
        store's handle go.
        """
        for cancelled in list(self._cancels):
            cancelled.set()
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)
        self._store.close()
        await asyncio.to_thread(tracing.stop)


def encoder_app(config: EncoderConfig) -> Any:
    """The Encoder as a bound Serve deployment, to be passed to the ingress."""
    scaling: dict[str, Any] = {
        "num_replicas": config.min_replicas,
        "graceful_shutdown_wait_loop_s": LEAVE_S,
    }
    if config.max_replicas > config.min_replicas:
        # Serve's two seconds here: an encoder that goes may still be sent a page by an ingress that
        # has not heard of it.
        scaling = {
            "autoscaling_config": {
                "min_replicas": config.min_replicas,
                "max_replicas": config.max_replicas,
                "target_ongoing_requests": config.ongoing_per_replica,
                "upscale_delay_s": config.upscale_delay_s,
                "downscale_delay_s": config.downscale_delay_s,
                "look_back_period_s": LOOK_BACK_S,
                "policy": AutoscalingPolicy(policy_function=encoders_wanted),
            }
        }
    deployment = serve.deployment(
        name="Encoder",
        max_ongoing_requests=config.ongoing_per_replica,
        max_queued_requests=config.queued_per_handle,
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus or 0},
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=30,
        **scaling,
    )
    return deployment(Encoder).bind(config)
