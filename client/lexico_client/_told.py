"""What is told of each load and offload: counters, hooks, a span, and the request it belongs to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from lexico_client._observer import CallEnded, LoadEnded, Observer, OffloadEnded
from lexico_client._results import Loaded, PageOutcome, PutReport
from lexico_codec.spec import CacheSpec
from lexico_proto import request_id, tracing
from lexico_proto.metrics import (
    ABSENT,
    CLIENT_BYTES,
    CLIENT_CALLS,
    CLIENT_DECODE_SECONDS,
    CLIENT_MISSES,
    CLIENT_RETRIES,
    CLIENT_SECONDS,
    CLIENT_TOKENS,
    METHODS,
    OK,
    Calls,
    Metrics,
    codec_label,
    reason_of,
)

_log = logging.getLogger(__name__)

NOBODY: Final = Observer()


class Told:
    """Of one client."""

    def __init__(self, metrics: Metrics, observer: Observer | None) -> None:
        """
        Args:
            metrics: where it is counted.
            observer: who hears of it beside.
        """
        self._metrics = metrics
        self._observer = observer or NOBODY
        self._sent = metrics.counter(CLIENT_BYTES, "sent")
        self._received = metrics.counter(CLIENT_BYTES, "received")
        self._load_seconds = metrics.histogram(CLIENT_SECONDS, "load")
        self._offload_seconds = metrics.histogram(CLIENT_SECONDS, "offload")
        self.retries = metrics.counter(CLIENT_RETRIES)

    @contextmanager
    def load(self, spec: CacheSpec, tokens: int) -> Iterator[Callable[[Loaded], None]]:
        """Around a load of a sequence; what it brought is to be given to what this yields."""
        asked = tokens // spec.page_tokens * spec.page_tokens
        span = tracing.span("lexico.client.load", codec=spec.codec.name, tokens=asked)
        with request_id.request() as request, span:
            span.set(request=request)

            def told(loaded: Loaded) -> None:
                span.set(loaded=loaded.tokens, bytes=loaded.bytes_received)
                self._loaded(spec, asked, loaded, request)

            yield told

    @contextmanager
    def offload(self, spec: CacheSpec) -> Iterator[Callable[[PutReport], None]]:
        """Around an offload; its report is to be given to what this yields."""
        began, codec = time.perf_counter(), spec.codec.name
        span = tracing.span("lexico.client.offload", codec=codec)
        with request_id.request() as request, span:
            span.set(request=request)

            def told(report: PutReport) -> None:
                span.set(tokens=report.tokens, bytes=report.bytes_sent)
                self._offloaded(spec, report, request)

            try:
                yield told
            except BaseException as error:
                seconds, reason = time.perf_counter() - began, reason_of(error)
                self._offload_seconds.observe(seconds)
                event = OffloadEnded(codec, 0, 0, 0, 0, reason, seconds, request)
                _tell(self._observer.offload_ended, event)
                raise

    def _loaded(self, spec: CacheSpec, asked: int, loaded: Loaded, request: str) -> None:
        codec, matched = spec.codec.name, loaded.matched_pages * spec.page_tokens
        label, miss = codec_label(codec), None
        if loaded.reason is not None:
            miss = reason_of(loaded.reason)
        elif not loaded.pages:
            miss = ABSENT
        if miss is not None:
            self._metrics.counter(CLIENT_MISSES, miss).add()
        self._received.add(loaded.bytes_received)
        for what, tokens in (("asked", asked), ("matched", matched), ("loaded", loaded.tokens)):
            self._metrics.counter(CLIENT_TOKENS, label, what).add(tokens)
        seconds = loaded.seconds
        self._load_seconds.observe(seconds.total)
        if loaded.pages:
            self._metrics.histogram(CLIENT_DECODE_SECONDS, label).observe(seconds.decode)
        event = LoadEnded(
            codec,
            asked,
            matched,
            loaded.tokens,
            miss,
            loaded.bytes_received,
            seconds.total,
            seconds.decode,
            request,
        )
        _tell(self._observer.load_ended, event)

    def _offloaded(self, spec: CacheSpec, report: PutReport, request: str) -> None:
        codec = spec.codec.name
        self._sent.add(report.bytes_sent)
        self._metrics.counter(CLIENT_TOKENS, codec_label(codec), "offloaded").add(report.tokens)
        self._offload_seconds.observe(report.seconds.total)
        event = OffloadEnded(
            codec,
            report.tokens,
            report.pages.count(PageOutcome.STORED),
            report.bytes_sent,
            report.bytes_stored,
            None,
            report.seconds.total,
            request,
        )
        _tell(self._observer.offload_ended, event)


class ToldCalls:
    """Of one transport: each call is counted, observed, and a span; and says so in its metadata."""

    def __init__(self, metrics: Metrics, observer: Observer | None) -> None:
        """
        Args:
            metrics: where calls are counted.
            observer: who hears of them beside.
        """
        self._calls = {method: Calls(metrics, CLIENT_CALLS, method) for method in METHODS}
        self._observer = observer or NOBODY

    @contextmanager
    def call(self, method: str) -> Iterator[tuple[tuple[str, str], ...]]:
        """Around one call: the metadata that it takes with it.

        Its span is no block's: a stream's would be the parent of whatever its reader does.
        """
        span = tracing.span(f"lexico.{method}", kind="client")
        request, began = request_id.current() or request_id.made(), time.perf_counter()
        error: BaseException | None = None
        try:
            with self._calls[method].counted():
                yield ((request_id.METADATA_KEY, request), *span.trace)
        except BaseException as raised:
            error = raised
            raise
        finally:
            span.end(error)
            if self._observer is not NOBODY:
                outcome = OK if error is None else reason_of(error)
                ended = CallEnded(method, outcome, time.perf_counter() - began, request)
                _tell(self._observer.call_ended, ended)


def _tell(hook: Callable[[Any], None], event: object) -> None:
    try:
        hook(event)
    except Exception:  # noqa: BLE001 - the caller's defect, and none of the call's
        _log.exception("an observer failed")
