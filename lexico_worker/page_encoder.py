"""A page from raw groups to the store: plain Python, no Ray."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import torch

from lexico_codec.pages import encode_group_parts
from lexico_codec.pieces import Piece, Pieces
from lexico_codec.sets.builtin import find_builtin
from lexico_codec.sets.choose import check_model
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from lexico_codec.tensors import tensor_from
from lexico_codec.wire import described
from lexico_proto import request_id, tracing
from lexico_proto.errors import (
    Cancelled,
    Forgotten,
    QuotaExceeded,
    ShapeMismatch,
    UnknownDictionary,
)
from lexico_proto.metrics import LEASES, LEASES_TAKEN, PROCESS, Change, Metrics
from lexico_proto.tracing import Trace
from lexico_store import Ledger, PageStore
from lexico_store.lifetimes import now_us
from lexico_store.scopes import SHARED_SCOPE
from lexico_worker.measured_error import ErrorSamples

_log = logging.getLogger(__name__)

_ESTIMATED_FOR_S: Final = 5.0
"""How long an estimate of a tenant's bytes counts."""
_RENEW_AT: Final = 0.1
"""Part of a lease's time after which it is renewed, before the next layer group."""


@dataclass(frozen=True)
class PageJob:
    """One page to encode and commit."""

    scope: bytes
    """Digest of the caller's tenant."""
    spec: CacheSpec
    page: int
    """Index of the page in its sequence."""
    page_key: bytes
    owner: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    """Who holds the page's lease: the job, so that a second attempt takes over from a dead one."""
    trace: Trace = field(default=(), repr=False)
    """What the caller's call is part of, for whoever makes spans; it is never logged."""
    request: str = ""
    """Request id of the caller's call, for logs."""
    began_us: int = field(default_factory=now_us)
    """When its upload began, in microseconds since 1970: pages live from then on, and what was
    forgotten since is not stored."""
    sequence: Sequence[bytes] = ()
    """Keys of pages of its sequence, this one among them, for the first page of an upload: those
    that are there are renewed, so that none expires before what the upload adds."""
    sequence_first: int = 0
    """Index of the first of them."""
    ttl_s: float | None = None
    """Seconds the tenant's pages live; None for the encoder's own setting."""
    max_stored_bytes: int | None = None
    """Bytes that the tenant may have stored, about; None for no bound."""
    fullness: float = 0.0
    """Share of its ingress's bytes in flight that was with encoders or waited for them."""


class Outcome(Enum):
    """What became of a page."""

    STORED = "stored"
    PRESENT = "present"
    IN_PROGRESS = "in-progress"


@dataclass(frozen=True)
class PageDone:
    """A page's outcome and what it took."""

    outcome: Outcome
    stored_bytes: int = 0
    encode_s: float = 0.0
    commit_s: float = 0.0
    counted: tuple[Change, ...] = field(default=(), repr=False)
    """What its encoder counted since its last answer, if that counts elsewhere than its caller."""


class PageEncoder:
    """Encodes pages and commits them whole. Safe to call from several threads, and again with the
    same page.
    """

    def __init__(
        self,
        store: PageStore,
        *,
        page_ttl_s: float,
        lease_ttl_s: float,
        device: torch.device | str = "cpu",
        dictionary_cache_bytes: int = 1 << 30,
        error_every: int = 0,
        metrics: Metrics = PROCESS,
    ) -> None:
        """
        Args:
            store: where pages go and dictionary sets come from.
            page_ttl_s: seconds a page lives, unless its job says otherwise.
            lease_ttl_s: seconds after which another encoder may take a page over.
            device: where vectors are coded.
            dictionary_cache_bytes: dictionary sets kept in memory.
            error_every: of so many pages, one is decoded again in part to measure the error; 0 for
                none.
            metrics: where leases and errors are counted.
        """
        self._leases = {what: metrics.counter(LEASES, what) for what in LEASES_TAKEN}
        self._errors = ErrorSamples(error_every, metrics)
        self._store = store
        self._page_ttl_s = page_ttl_s
        self._lease_ttl_s = lease_ttl_s
        self._device = torch.device(device)
        self._dictionaries = _DictionaryCache(store, dictionary_cache_bytes)
        self._ledger = Ledger(store)
        self._estimates: dict[bytes, tuple[float, int]] = {}

    def encode_page(
        self,
        job: PageJob,
        raw: Sequence[Piece],
        cancelled: threading.Event | None = None,
        progress: Callable[[], None] | None = None,
    ) -> PageDone:
        """Encodes every group of a page and commits the page in one transaction.

        Running it again is harmless: a page that is there is left alone, and one that another
        encoder holds the lease of is left to that encoder.

        Args:
            job: which page.
            raw: the page's bytes in pieces, `spec.page_bytes` in all: its layer groups one after
                another.
            cancelled: looked at between groups; set, it ends the work with nothing written.
            progress: called before each group, so that slow work can be told from stuck work.

        Raises:
            ShapeMismatch, NonFiniteCache, UnknownDictionary, DictionaryMismatch: the page cannot be
                encoded.
            StoreUnavailable, Busy: the store does not take it.
            Forgotten: it was forgotten since its upload began.
            QuotaExceeded: the tenant has stored what it may.
            Cancelled: the caller went away.
        """
        span = tracing.span("lexico.encode", job.trace, "server", page=job.page)
        with request_id.request(job.request), span:
            span.set(codec=job.spec.codec.name, request=request_id.current())
            done = self._encode_page(job, Pieces(raw), cancelled, progress)
            span.set(outcome=done.outcome.value)
        return done

    def _encode_page(
        self,
        job: PageJob,
        pieces: Pieces,
        cancelled: threading.Event | None,
        progress: Callable[[], None] | None,
    ) -> PageDone:
        spec = job.spec
        if len(pieces) != spec.page_bytes:
            raise ShapeMismatch(f"page {job.page}: {len(pieces)} bytes, needs {spec.page_bytes}")
        ttl_s = job.ttl_s or self._page_ttl_s
        scope, present = self._look(job, ttl_s)
        if present:
            return PageDone(Outcome.PRESENT)
        self._check_quota(job)
        dictionary = None
        if spec.codec.needs_dictionary:
            dictionary = self._dictionaries.get(job.scope, spec.dictionary)
            check_model(dictionary, spec.whole_geometry)
        leased = time.monotonic()
        lease = self._store.lease(scope, job.page_key, self._lease_ttl_s, job.owner)
        if lease is None:
            self._leases["held"].add()
            return PageDone(Outcome.IN_PROGRESS)
        self._leases["taken"].add()
        with lease:
            if self._store.present(scope, [job.page_key])[0]:  # another was faster
                return PageDone(Outcome.PRESENT)
            started = time.perf_counter()
            frames, start = list[tuple[bytes, memoryview]](), 0
            for group in range(spec.groups):
                if cancelled is not None and cancelled.is_set():
                    raise Cancelled(f"page {job.page}: the caller went away")
                if progress is not None:
                    progress()
                held_s = time.monotonic() - leased
                if held_s > self._lease_ttl_s * _RENEW_AT:
                    # A slow encoder must not lose the page in the middle of it; a quick one need
                    # not ask the store before each of its groups.
                    leased = time.monotonic()
                    self._store.lease(scope, job.page_key, self._lease_ttl_s, job.owner)
                    self._leases["renewed"].add()
                end = start + spec.group_bytes(group)
                tensor = _group(spec, group, pieces, start).to(self._device)
                frames.append(
                    encode_group_parts(spec, job.page_key, job.page, group, tensor, dictionary)
                )
                start = end
            encoded = time.perf_counter()
            size = sum(len(part) for frame in frames for part in frame)
            self._commit(job, scope, frames, size, ttl_s)
            committed = time.perf_counter()
        measured = self._errors.group_of_next(spec)
        if measured is not None:
            start = sum(map(spec.group_bytes, range(measured)))
            tensor = _group(spec, measured, pieces, start).to(self._device)
            frame = b"".join(frames[measured])
            self._errors.measure(spec, job.page_key, job.page, measured, tensor, frame, dictionary)
        return PageDone(
            Outcome.STORED,
            stored_bytes=size,
            encode_s=encoded - started,
            commit_s=committed - encoded,
        )

    def _look(self, job: PageJob, ttl_s: float) -> tuple[bytes, bool]:
        """The scope of the generation in force, and whether the page is there. Renews the job's
        sequence on the way, in the same round trip."""
        keys, renew_s = job.sequence or [job.page_key], ttl_s if job.sequence else None
        first = job.sequence_first if job.sequence else job.page
        namespace = job.spec.namespace
        with tracing.span("lexico.store.match", pages=len(keys)):
            found = self._store.match(job.scope, namespace, keys, renew_s=renew_s, first=first)
        if job.began_us <= found.generation:
            raise _forgotten(job)
        return found.scope, found.present[job.page - first]

    def _commit(
        self,
        job: PageJob,
        scope: bytes,
        frames: list[tuple[bytes, memoryview]],
        size: int,
        ttl_s: float,
    ) -> None:
        """Stores a page, to live as if it had been stored when its upload began: the pages of an
        upload are committed in any order, and none may outlive the one before it."""
        late_s = max(0.0, (now_us() - job.began_us) / 1e6)
        left_s = max(ttl_s / 2, ttl_s - late_s)
        key, began_us = job.page_key, job.began_us
        with tracing.span("lexico.store.commit", bytes=size):
            stored = self._store.commit(
                scope, key, frames, left_s, page=job.page, began_us=began_us
            )
        if not stored:
            raise _forgotten(job)
        self._ledger.note(
            job.scope,
            job.spec.namespace,
            scope,
            key,
            size,
            _about(job.spec),
            description=described(job.spec).SerializeToString(deterministic=True),
            began_us=began_us,
        )

    def _check_quota(self, job: PageJob) -> None:
        most = job.max_stored_bytes
        if most is None:
            return
        due, stored = self._estimates.get(job.scope, (0.0, 0))
        if time.monotonic() >= due:
            stored = self._ledger.estimate(job.scope)
            self._estimates[job.scope] = (time.monotonic() + _ESTIMATED_FOR_S, stored)
        if stored >= most:
            raise QuotaExceeded(
                f"about {stored} of the tenant's {most} bytes are stored: pages that nobody uses "
                "expire; forget some with `lexico forget`, or have max_stored_bytes raised"
            )


def _group(spec: CacheSpec, group: int, pieces: Pieces, start: int) -> torch.Tensor:
    """A layer group of a page, which begins at `start`."""
    cut = pieces.cut(start, start + spec.group_bytes(group))
    return tensor_from(cut, spec.geometry.torch_dtype, spec.group_shape(group))


def _forgotten(job: PageJob) -> Forgotten:
    return Forgotten(f"page {job.page} was forgotten while it was on its way: it is not stored")


def _about(spec: CacheSpec) -> str:
    shape = f"{spec.geometry.layers} layers x {spec.geometry.kv_heads} KV heads"
    weights = spec.weights.hex()[:16]
    return f"codec {spec.codec.name}, weights {weights}, {shape}, pages of {spec.page_tokens}"


class _DictionaryCache:
    """Dictionary sets by tenant and digest, least recently used first out."""

    def __init__(self, store: PageStore, max_bytes: int) -> None:
        self._store = store
        self._max = max_bytes
        self._sets: OrderedDict[tuple[bytes, bytes], DictionarySet] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, scope: bytes, digest: bytes) -> DictionarySet:
        """The set, from memory or the store.

        Raises:
            UnknownDictionary: neither the tenant nor the operator registered it.
        """
        with self._lock:  # held while loading: a set is read once, however many pages want it
            for owner in (scope, SHARED_SCOPE):
                if (owner, digest) in self._sets:
                    self._sets.move_to_end((owner, digest))
                    return self._sets[owner, digest]
            owner, dictionary = self._load(scope, digest)
            self._sets[owner, digest] = dictionary
            while len(self._sets) > 1 and sum(map(_held_bytes, self._sets.values())) > self._max:
                self._sets.popitem(last=False)
            _log.info("dictionary=%s loaded", digest.hex()[:16])
            return dictionary

    def _load(self, scope: bytes, digest: bytes) -> tuple[bytes, DictionarySet]:
        for owner in (scope, SHARED_SCOPE):
            data = self._store.get_dictionary(owner, digest)
            if data is not None:
                dictionary = DictionarySet.load(data)
                if dictionary.digest == digest:
                    return owner, dictionary
        built_in = find_builtin(digest)
        if built_in is None:
            raise UnknownDictionary(
                f"dictionary set {digest.hex()[:16]} is not registered: register it first"
            )
        return SHARED_SCOPE, built_in


def _held_bytes(dictionary: DictionarySet) -> int:
    """Memory of a set: the artefact in float16, and the atoms again in float32."""
    return 3 * len(dictionary.to_bytes())
