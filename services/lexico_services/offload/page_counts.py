"""Counts of an ingress: what became of each page, its bytes, and the time of its stages."""

from __future__ import annotations

import asyncio
from typing import Final

from lexico_proto import metrics as m
from lexico_proto.errors import DictionaryMismatch, UnknownDictionary
from lexico_proto.metrics import Metrics
from lexico_worker.page_encoder import Outcome, PageDone, PageJob

_OF_ENCODERS: Final = {family.name: family for family in m.OF_ENCODERS}


class PageCounts:
    """Of one ingress, and of its encoders: what these counted comes with their answers."""

    def __init__(self, metrics: Metrics) -> None:
        """
        Args:
            metrics: where to count.
        """
        self._metrics = metrics
        self._pages = {outcome: metrics.counter(m.PAGES, outcome) for outcome in m.PAGE_OUTCOMES}
        self._received = metrics.counter(m.RECEIVED_BYTES)
        self._stored = metrics.counter(m.STORED_BYTES)
        self._seconds = {stage: metrics.histogram(m.PAGE_SECONDS, stage) for stage in m.STAGES}
        self.damaged = metrics.counter(m.CHECKSUM_FAILURES, "upload")
        """Pages that did not arrive as they were sent."""

    def received(self, tenant: str, size: int, seconds: float) -> None:
        """Counts a page that came whole."""
        self._received.add(size)
        self._metrics.counter(m.TENANT_BYTES, tenant, "received").add(size)
        self._seconds["receive"].observe(seconds)

    def passed(self, place_s: float, turn_s: float, encoder_s: float) -> None:
        """Counts the time of a page that an encoder answered for."""
        self._seconds["place"].observe(place_s)
        self._seconds["turn"].observe(turn_s)
        self._seconds["encoder"].observe(encoder_s)

    def done(self, tenant: str, job: PageJob, done: PageDone) -> None:
        """Counts an encoder's answer."""
        self._pages[done.outcome.value].add()
        self._metrics.add_changes(done.counted, _OF_ENCODERS)
        if done.outcome is not Outcome.STORED:
            return
        codec = m.codec_label(job.spec.codec.name)
        self._stored.add(done.stored_bytes)
        self._metrics.counter(m.TENANT_BYTES, tenant, "stored").add(done.stored_bytes)
        self._metrics.counter(m.CODED_BYTES, codec, "raw").add(job.spec.page_bytes)
        self._metrics.counter(m.CODED_BYTES, codec, "stored").add(done.stored_bytes)
        self._metrics.histogram(m.ENCODE_SECONDS, codec).observe(done.encode_s)
        self._seconds["commit"].observe(done.commit_s)

    def failed(self, error: BaseException) -> None:
        """Counts a page that nothing became of."""
        if isinstance(error, asyncio.CancelledError):
            self._pages["cancelled"].add()
            return
        self._pages["failed"].add()
        reason = m.reason_of(error)
        self._metrics.counter(m.PAGE_FAILURES, reason).add()
        if isinstance(error, UnknownDictionary | DictionaryMismatch):
            self._metrics.counter(m.SETS_REFUSED, reason).add()
