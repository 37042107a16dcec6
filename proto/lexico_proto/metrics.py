"""What is counted, under which names: every family of every process.

docs/reference/metrics.md is written from this file. Names and labels are a contract with whoever
draws them, as the messages beside this file are one with clients. Label values come from fixed
sets, or from a bounded one (tenants), so that no caller can make a series more than foreseen.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from lexico_proto.counters import OTHER as OTHER
from lexico_proto.counters import Change as Change
from lexico_proto.counters import Counter as Counter
from lexico_proto.counters import Distribution as Distribution
from lexico_proto.counters import Family as Family
from lexico_proto.counters import Gauge as Gauge
from lexico_proto.counters import Histogram as Histogram
from lexico_proto.counters import Label as Label
from lexico_proto.counters import Metrics as Metrics
from lexico_proto.engine_metrics import ENGINE_PAGES as ENGINE_PAGES
from lexico_proto.engine_metrics import ENGINE_REQUESTS as ENGINE_REQUESTS
from lexico_proto.engine_metrics import ENGINE_STAGED as ENGINE_STAGED
from lexico_proto.engine_metrics import ENGINE_TOKENS as ENGINE_TOKENS
from lexico_proto.engine_metrics import OF_ENGINES as OF_ENGINES
from lexico_proto.errors import ERRORS
from lexico_proto.errors import reason_of as reason_of
from lexico_proto.slice_metrics import SLICED_BYTES as SLICED_BYTES
from lexico_proto.slice_metrics import SLICED_PAGES as SLICED_PAGES
from lexico_proto.slice_metrics import SLICED_WAITING as SLICED_WAITING


def _label(name: str, values: Iterable[str]) -> Label:
    return Label(name, frozenset(values))


OK: Final = "ok"
METHODS: Final = (
    *("put", "match", "get", "register", "fetch", "list", "describe", "namespaces"),
    *("publish", "find"),
    *("usage", "pin", "unpin", "forget", "inspect", "tenants", "status"),
)
"""Every RPC, in lower case."""
PAGE_OUTCOMES: Final = ("stored", "present", "in-progress", "failed", "cancelled")
"""The outcomes of an encoder that answers, and two of one that does not."""
MISS_REASONS: Final = ("absent", "damaged", "newer")
ABSENT: Final = MISS_REASONS[0]
UNKNOWN: Final = "unknown"
CODECS: Final = (
    *("raw", "lossless", "lexico", "lexico-packed", "lexico-adaptive", "lexico-residual"),
    UNKNOWN,
)
"""Every codec, and what a caller does not name or names otherwise."""
PARTS: Final = ("ingress", "reload-server", "service", "ray", "store")
"""Processes that expose metrics, and what one of them watches beside."""
STAGES: Final = ("receive", "place", "turn", "encoder", "commit")
SETS: Final = ("given", "built-in", "published", "not-needed", "missing")
"""Where the set of a model comes from at a node."""
LEASES_TAKEN: Final = ("taken", "held", "renewed")

SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Buckets of durations: from a Match in memory to the longest deadlines."""
ERROR_BUCKETS: Final = (*(0.001, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2), *(0.3, 0.4, 0.5, 0.75, 1.0))
"""Buckets of relative errors: parts of the norm."""

_METHOD: Final = _label("method", METHODS)
_OUTCOME: Final = _label("outcome", (OK, *ERRORS))
_CODEC: Final = _label("codec", CODECS)
_TENANT: Final = Label("tenant", None)

BUILD_INFO: Final = Family(
    "lexico_build_info",
    "1, with the release and which part this is.",
    (Label("version", None), _label("part", PARTS)),
    gauge=True,
)
CALLS: Final = Family(
    "lexico_calls_total",
    "Calls that a server ended, by what it answered: ok, or the reason of the error.",
    (_METHOD, _OUTCOME),
)
CALL_SECONDS: Final = Family(
    "lexico_call_seconds",
    "Seconds of each call that a server ended, however it ended.",
    (_METHOD,),
    buckets=SECONDS,
)
FILE_READS: Final = Family(
    "lexico_file_reads_total",
    "Files of tokens, certificates and keys that changed: taken, or refused for what was before.",
    (_label("outcome", ("taken", "refused")),),
)
CERTIFICATE_END: Final = Family(
    "lexico_certificate_end_timestamp_seconds",
    "When the certificate that the port shows ends, in Unix time.",
    gauge=True,
)
CHECKSUM_FAILURES: Final = Family(
    "lexico_checksum_failures_total",
    "Bytes that are not those that were summed: pages of an upload, frames from the store.",
    (_label("where", ("upload", "store")),),
)
SETS_REFUSED: Final = Family(
    "lexico_sets_refused_total",
    "Dictionary sets that could not be used: registers that were refused, and pages whose set is "
    "unknown or does not fit.",
    (_label("reason", ERRORS),),
)
TENANT_BYTES: Final = Family(
    "lexico_tenant_bytes_total",
    "Bytes by tenant: raw ones that came in whole pages, frames stored of them, frames sent.",
    (_TENANT, _label("direction", ("received", "stored", "sent"))),
)

# Ingress and encoders

PAGES: Final = Family(
    "lexico_pages_total",
    "Pages that an ingress gave to encoders.",
    (_label("outcome", PAGE_OUTCOMES),),
)
PAGE_FAILURES: Final = Family(
    "lexico_page_failures_total",
    "Pages that encoders failed with, by the reason of the error.",
    (_label("reason", ERRORS),),
)
RECEIVED_BYTES: Final = Family(
    "lexico_received_bytes_total",
    "Bytes of caches that an ingress received, in pages and slices that came whole.",
)
STORED_BYTES: Final = Family(
    "lexico_stored_bytes_total", "Bytes of frames that encoders committed for an ingress."
)
CODED_BYTES: Final = Family(
    "lexico_coded_bytes_total",
    "Bytes of the pages that were stored, by codec: raw before, stored after. Their ratio is how "
    "much a codec saves.",
    (_CODEC, _label("form", ("raw", "stored"))),
)
PAGE_SECONDS: Final = Family(
    "lexico_page_seconds",
    "Seconds of each page at the ingress, by stage: receiving its bytes, placing them in shared "
    "memory, waiting for its turn, with the encoder; and of that, committing.",
    (_label("stage", STAGES),),
    buckets=SECONDS,
)
ENCODE_SECONDS: Final = Family(
    "lexico_encode_seconds",
    "Seconds that an encoder took for codes and frames of a page that it stored.",
    (_CODEC,),
    buckets=SECONDS,
)
INFLIGHT_BYTES: Final = Family(
    "lexico_inflight_bytes", "Raw page bytes that the ingress holds room for.", gauge=True
)
INFLIGHT_LIMIT: Final = Family(
    "lexico_inflight_limit_bytes", "Most raw page bytes it may hold: over it, Busy.", gauge=True
)
PAGES_ENCODING: Final = Family(
    "lexico_pages_encoding", "Pages with encoders, or in their queues.", gauge=True
)
PAGES_WAITING: Final = Family(
    "lexico_pages_waiting", "Pages that wait at the ingress for their tenant's turn.", gauge=True
)
ENCODER_RETRIES: Final = Family(
    "lexico_encoder_retries_total",
    "Pages that were given to a second encoder because the first one died.",
)
LEASES: Final = Family(
    "lexico_leases_total",
    "Leases that encoders asked for: taken, held by another that works on the same page, renewed.",
    (_label("outcome", LEASES_TAKEN),),
)
RELATIVE_ERROR: Final = Family(
    "lexico_relative_error_ratio",
    "Relative error of a layer group after decoding, root of squares over root of squares, of one "
    "page in many.",
    (_CODEC,),
    buckets=ERROR_BUCKETS,
)
EXACT_TOKENS: Final = Family(
    "lexico_exact_tokens_total",
    "Tokens like nothing that lexico-residual's set was made from, which were stored exactly: a "
    "count for each layer group.",
)

# Reload servers

MATCHES: Final = Family(
    "lexico_matches_total",
    "Matches of callers that want to load, by how many of the pages were there.",
    (_TENANT, _CODEC, _label("outcome", ("all", "some", "none"))),
)
MATCH_TOKENS: Final = Family(
    "lexico_match_tokens_total", "Tokens that these Matches asked for.", (_TENANT, _CODEC)
)
HIT_TOKENS: Final = Family(
    "lexico_hit_tokens_total",
    "Of these, leading tokens that were there. Over those asked for it is the hit rate.",
    (_TENANT, _CODEC),
)
MISSES: Final = Family(
    "lexico_misses_total",
    "Frames that a Get looked for and could not give.",
    (_label("reason", MISS_REASONS),),
)
SENT_BYTES: Final = Family(
    "lexico_sent_bytes_total", "Bytes of frames that a reload server wrote to callers."
)
SENT_PAGES: Final = Family(
    "lexico_sent_pages_total", "Pages that a reload server wrote to callers, to their last frame."
)
SET_SEARCHES: Final = Family(
    "lexico_set_searches_total",
    "Times that a node asked which set is published for its model, by whether one was. A node that "
    "was given a set, or finds a built-in one, does not ask.",
    (_label("outcome", ("found", "none")),),
)
STREAMS: Final = Family(
    "lexico_streams", "Get, Fetch and Register streams that are being served.", gauge=True
)
STREAMS_LIMIT: Final = Family(
    "lexico_streams_limit", "Most streams that are served at a time: over it, Busy.", gauge=True
)
STORE_CALLS: Final = Family(
    "lexico_store_calls", "Match and List calls that wait for the store.", gauge=True
)
BUFFERED_BYTES: Final = Family(
    "lexico_buffered_bytes", "Bytes of frames and sets held for streams.", gauge=True
)
BUFFERED_LIMIT: Final = Family(
    "lexico_buffered_limit_bytes", "Most bytes held for streams: over it, they wait.", gauge=True
)

# The store, as whoever has a handle sees it

STORE_RETRIES: Final = Family(
    "lexico_store_retries_total",
    "Commands that were sent to the store again: a lost connection, a failover, a slot on the "
    "move.",
)
STORE_UP: Final = Family(
    "lexico_store_up", "1 where the store answered the last question about itself.", gauge=True
)
STORE_BYTES: Final = Family(
    "lexico_store_bytes", "Bytes of memory that the store's servers use.", gauge=True
)
STORE_LIMIT: Final = Family(
    "lexico_store_limit_bytes", "Their maxmemory; 0 where one has none.", gauge=True
)
STORE_EVICTIONS: Final = Family(
    "lexico_store_evictions_total", "Keys, which pages are, that a full store let go."
)
STORE_EXPIRIES: Final = Family(
    "lexico_store_expiries_total", "Keys whose time was over, leases among them."
)
STORE_CONNECTIONS: Final = Family(
    "lexico_store_connections", "Connections to the store's servers.", gauge=True
)

# The service process of `serve` and `offload-server`

PART_UP: Final = Family(
    "lexico_part_up",
    "1 where a part of this service was there at the last look.",
    (_label("part", PARTS),),
    gauge=True,
)

# Nodes

CLIENT_CALLS: Final = Family(
    "lexico_client_calls_total",
    "Calls that a client made, by how they ended: ok, or the reason of the error.",
    (_METHOD, _OUTCOME),
)
CLIENT_CALL_SECONDS: Final = Family(
    "lexico_client_call_seconds",
    "Seconds of each call that a client made, however it ended.",
    (_METHOD,),
    buckets=SECONDS,
)
CLIENT_BYTES: Final = Family(
    "lexico_client_bytes_total",
    "Bytes of caches in offloads that were answered (sent), and of frames in loads (received).",
    (_label("direction", ("sent", "received")),),
)
CLIENT_MISSES: Final = Family(
    "lexico_client_misses_total",
    "Loads that brought nothing, or less than was matched: absent, or the reason of the error.",
    (_label("reason", (ABSENT, *ERRORS)),),
)
CLIENT_TOKENS: Final = Family(
    "lexico_client_tokens_total",
    "Tokens of loads: of full pages asked for, matched, loaded; and of offloads that were "
    "answered.",
    (_CODEC, _label("what", ("asked", "matched", "loaded", "offloaded"))),
)
CLIENT_SECONDS: Final = Family(
    "lexico_client_seconds",
    "Seconds of each load and offload, from the call to its result.",
    (_label("operation", ("load", "offload")),),
    buckets=SECONDS,
)
CLIENT_DECODE_SECONDS: Final = Family(
    "lexico_client_decode_seconds",
    "Seconds of each load that went into verifying and decoding frames.",
    (_CODEC,),
    buckets=SECONDS,
)
CLIENT_MODELS: Final = Family(
    "lexico_client_models",
    "Models that were given to a client to code, by the codec of their new pages now, and by why: "
    "a set was given, built in, or published; the codec needs none; or there is none, and pages "
    "are lossless until one is published.",
    (_CODEC, _label("set", SETS)),
    gauge=True,
)
CLIENT_SETS_REFUSED: Final = Family(
    "lexico_client_sets_refused_total",
    "Published sets that do not fit the model, or could not be had, by the reason of the error.",
    (_label("reason", ERRORS),),
)
CLIENT_RETRIES: Final = Family(
    "lexico_client_retries_total", "Calls that a client made a second time."
)

FAMILIES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Family))
"""All of them."""
BY_NAME: Final = {family.name: family for family in FAMILIES}
OF_SERVERS: Final = (
    *(BUILD_INFO, CALLS, CALL_SECONDS, FILE_READS, CERTIFICATE_END),
    *(CHECKSUM_FAILURES, SETS_REFUSED, TENANT_BYTES),
)
OF_INGRESS: Final = (
    *(PAGES, PAGE_FAILURES, RECEIVED_BYTES, STORED_BYTES, CODED_BYTES),
    *(PAGE_SECONDS, ENCODE_SECONDS, INFLIGHT_BYTES, INFLIGHT_LIMIT),
    *(PAGES_ENCODING, PAGES_WAITING, ENCODER_RETRIES),
    *(SLICED_PAGES, SLICED_WAITING, SLICED_BYTES),
)
OF_RELOAD: Final = (
    *(MATCHES, MATCH_TOKENS, HIT_TOKENS, MISSES, SENT_PAGES, SENT_BYTES, SET_SEARCHES),
    *(STREAMS, STREAMS_LIMIT, STORE_CALLS, BUFFERED_BYTES, BUFFERED_LIMIT),
    *(STORE_RETRIES, STORE_UP, STORE_BYTES, STORE_LIMIT),
    *(STORE_EVICTIONS, STORE_EXPIRIES, STORE_CONNECTIONS),
)
OF_SERVICE: Final = (BUILD_INFO, PART_UP)
OF_CLIENTS: Final = (
    *(CLIENT_CALLS, CLIENT_CALL_SECONDS, CLIENT_BYTES, CLIENT_MISSES),
    *(CLIENT_TOKENS, CLIENT_SECONDS, CLIENT_DECODE_SECONDS, CLIENT_RETRIES),
    *(CLIENT_MODELS, CLIENT_SETS_REFUSED),
)
OF_ENCODERS: Final = (LEASES, RELATIVE_ERROR, EXACT_TOKENS, STORE_RETRIES)
"""Counted in encoders, which answer with what came to them."""

PROCESS: Final = Metrics()
"""Where everything in a process counts that was not given other metrics."""


def codec_label(name: str) -> str:
    """The label value of a codec that somebody named."""
    return name if name in CODECS else UNKNOWN


class Calls:
    """Calls of one method, counted as they end."""

    def __init__(self, metrics: Metrics, family: Family, method: str) -> None:
        """
        Args:
            metrics: where to count.
            family: `CALLS` or `CLIENT_CALLS`.
            method: one of `METHODS`.
        """
        self.method = method
        self._metrics = metrics
        self._family = family
        self._ok = metrics.counter(family, method, OK)
        seconds = CALL_SECONDS if family is CALLS else CLIENT_CALL_SECONDS
        self._seconds = metrics.histogram(seconds, method)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts one call, by what leaves the block."""
        began = time.perf_counter()
        try:
            yield
        except BaseException as error:
            self._metrics.counter(self._family, self.method, reason_of(error)).add()
            raise
        else:
            self._ok.add()
        finally:
            self._seconds.observe(time.perf_counter() - began)
