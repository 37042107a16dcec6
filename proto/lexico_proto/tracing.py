"""Spans of a process: a thin layer over OpenTelemetry, and nothing at all where it is off.

    with tracing.span("lexico.load", pages=3) as span:
        headers = span.trace

The span of a block is the parent of the spans that begin in it. Elsewhere, in another process or
thread, the parent is named by its headers (W3C Trace Context): they travel in the metadata of calls
and in `PageJob`. What is not sampled costs no call into OpenTelemetry; its headers say so, and the
processes behind it sample nothing of it either.

OpenTelemetry's own current span is not set here. Its context must be left where it was entered, and
a stream that is cancelled is closed elsewhere. It is looked at, though: an application's span is
the parent of ours.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import random
import threading
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from lexico_proto.errors import ConfigurationError
from lexico_proto.metrics import reason_of

_log = logging.getLogger(__name__)

Trace = tuple[tuple[str, str], ...]
"""Names and values of the headers of W3C Trace Context: `traceparent`, perhaps `tracestate`; or
nothing."""

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own variables that say where spans go."""
FLUSH_S: Final = 2.0
"""What the last spans are given at the end of a process."""

_NEEDED: Final = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.grpc")
_SAMPLED: Final = 0x01


def _is_endpoint(text: str) -> bool:
    """Whether it is the URL of a collector."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # no port is such a number
        return False


@dataclass(frozen=True)
class TracingConfig:
    """Where spans go, and of which traces."""

    endpoint: str | None = None
    """Where spans go by OTLP over gRPC, such as `http://collector:4317`; none: where
    OTEL_EXPORTER_OTLP_ENDPOINT says, or nowhere."""
    sample: float = 0.01
    """Part of the traces that begin here which is sampled; a caller's trace is as its caller says.
    """

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sample) and 0 <= self.sample <= 1):
            raise ConfigurationError(f"tracing: sample is {self.sample}: give a number from 0 to 1")
        if self.endpoint is not None and not _is_endpoint(self.endpoint):
            raise ConfigurationError(
                f"tracing: endpoint is {self.endpoint!r:.60}: give a URL such as "
                "http://collector:4317"
            )

    def wanted(self, environment: Mapping[str, str] = os.environ) -> bool:
        """Whether spans go anywhere."""
        if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return False
        return self.endpoint is not None or any(environment.get(name) for name in ENDPOINTS)


class Span:
    """Some work: a block, or from when it is made to `end`. One that is not sampled only carries
    its headers.
    """

    __slots__ = ("_own", "_token", "trace")

    def __init__(self, own: Any, trace: Trace) -> None:
        """
        Args:
            own: OpenTelemetry's span; None where it is not sampled.
            trace: headers for what it is the parent of.
        """
        self._own = own
        self._token: Token[Span | None] | None = None
        self.trace = trace

    def set(self, **attributes: str | int | float | bool) -> None:
        """Adds attributes, under names that begin with `lexico.`. They hold no tokens, prompts or
        secrets."""
        if self._own is not None:
            for name, value in attributes.items():
                self._own.set_attribute(f"lexico.{name}", value)

    def end(self, error: BaseException | None = None) -> None:
        """Ends it, as failed if there was an error, of which the reason alone is told."""
        if self._own is None:
            return
        own, self._own = self._own, None
        if error is not None:
            from opentelemetry.trace import StatusCode

            own.set_attribute("lexico.outcome", reason_of(error))
            own.set_status(StatusCode.ERROR, reason_of(error))
        own.end()

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            with suppress(ValueError):  # closed in another context, where it was never set
                _current.reset(self._token)
        self.end(error)


class _Off(Span):
    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


OFF: Final = _Off(None, ())
_current: Final[ContextVar[Span | None]] = ContextVar("lexico_span", default=None)
_tracer: Any = None
_application_span: Any = None
_sample = 0.0
_provider: Any = None  # ours, to be ended


def span(
    name: str,
    parent: Trace | None = None,
    kind: str = "internal",
    **attributes: str | int | float | bool,
) -> Span:
    """A span that has begun. As a block it is the parent of what begins inside.

    Args:
        name: low in cardinality, such as `lexico.put`.
        parent: headers of its parent; None, or no headers, for the span of the block around, else
            the application's current span, else none: then a trace begins.
        kind: internal, client or server.
        attributes: as `Span.set`.
    """
    if _tracer is None:
        return OFF
    around = None if parent else _current.get()
    headers = parent or (around.trace if around is not None else _application_trace())
    if headers:
        if not is_sampled(headers):
            return Span(None, headers)
    elif random.random() >= _sample:
        trace, own = random.getrandbits(128) or 1, random.getrandbits(64) or 1
        return Span(None, (("traceparent", f"00-{trace:032x}-{own:016x}-00"),))
    return _sampled(name, headers, kind, attributes)


def is_on() -> bool:
    """Whether this process makes spans."""
    return _tracer is not None


def current() -> Trace:
    """Headers of the span around; nothing outside of one."""
    around = _current.get()
    return () if around is None else around.trace


def is_sampled(trace: Trace) -> bool:
    """Whether spans of the trace are kept, by the flags of its `traceparent`."""
    return any(key == "traceparent" and int(text[53:55], 16) & _SAMPLED for key, text in trace)


def start(config: TracingConfig, part: str) -> bool:
    """Has spans of this process exported from now on, if the settings say where.

    Args:
        config: where, and how many.
        part: of the service, for `service.name`, unless OTEL_SERVICE_NAME says otherwise.

    Raises:
        ConfigurationError: the packages for it are not installed.
    """
    if not config.wanted() or not check(config):
        return False
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": f"lexico-{part}"}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=config.endpoint)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    use(provider, config.sample)
    global _provider
    _provider = provider
    return True


def check(config: TracingConfig) -> bool:
    """Whether what exports spans is installed; where it is not, and OpenTelemetry's variables alone
    ask for it, a warning is logged: they may be meant for others.

    Raises:
        ConfigurationError: it is not, and our settings ask for it.
    """
    missing = [name for name in _NEEDED if config.wanted() and not _is_installed(name)]
    if not missing:
        return True
    needs = f"traces need {missing[0]}: pip install 'lexico-offload[otel]'"
    if config.endpoint is not None:
        raise ConfigurationError(needs)
    _log.warning("tracing=off %s", needs)
    return False


def use(provider: Any, sample: float = 1.0) -> None:
    """Has spans of this process made by an application's `TracerProvider`.

    Args:
        provider: OpenTelemetry's; it stays the caller's.
        sample: part of the traces that begin here which is given to it.
    """
    global _tracer, _sample, _application_span
    from opentelemetry.trace import get_current_span

    stop()
    _application_span = get_current_span
    _sample = sample
    _tracer = provider.get_tracer("lexico-offload")


def stop() -> None:
    """Sends what was not sent, for `FLUSH_S` at most, and makes no more spans."""
    global _tracer, _provider
    _tracer, provider, _provider = None, _provider, None
    if provider is not None:
        ending = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
        ending.start()
        ending.join(FLUSH_S)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even what it is a part of
        return False


def _application_trace() -> Trace:
    """Headers of OpenTelemetry's current span."""
    return _headers(_application_span().get_span_context())


def _sampled(name: str, headers: Trace, kind: str, attributes: Mapping[str, Any]) -> Span:
    from opentelemetry import trace
    from opentelemetry.trace import SpanKind

    around = trace.set_span_in_context(trace.NonRecordingSpan(_context(headers)))
    own = _tracer.start_span(name, context=around, kind=SpanKind[kind.upper()])
    made = Span(own, _headers(own.get_span_context()))
    made.set(**attributes)
    return made


def _context(headers: Trace) -> Any:
    """OpenTelemetry's name for a parent."""
    from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, TraceFlags, TraceState

    found = dict(headers)
    if "traceparent" not in found:
        return INVALID_SPAN_CONTEXT
    _, trace, parent, flags = found["traceparent"].split("-")[:4]
    state = TraceState.from_header([found["tracestate"]]) if "tracestate" in found else None
    return SpanContext(int(trace, 16), int(parent, 16), True, TraceFlags(int(flags, 16)), state)


def _headers(context: Any) -> Trace:
    if not context.is_valid:
        return ()
    own = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 0xFF:02x}"
    state = context.trace_state.to_header()
    return (("traceparent", own), ("tracestate", state)) if state else (("traceparent", own),)
