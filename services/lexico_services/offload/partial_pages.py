"""Pages of which some slices are here and others are awaited, within bounds of bytes and time.

Ranks of a model send slices of the same pages at about the same time. Slices of a page lie here
until they cover it; then the page goes the way of every other. A page that is not covered within
`offload.slice_wait_s` of its first slice is given up, and its room is free.

A rank that is ahead of the others opens many pages, and could take all room, so that no slice of
the others would fit and nothing would ever be whole. So what open pages will need once they are
whole is bounded apart: by half of all room, and by what their tenant may have. A slice of another
page waits; one of an open page does not.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from lexico_codec.pieces import Piece
from lexico_codec.slices import Slice, SlicedPage
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import Busy, InvalidInput, QuotaExceeded
from lexico_proto.metrics import SLICED_PAGES, Metrics
from lexico_proto.slice_metrics import SLICED_OUTCOMES
from lexico_services.policies import Policies
from lexico_worker.page_encoder import Outcome, PageDone

_log = logging.getLogger(__name__)

MIN_SLICE_ROOM: Final = 1024
"""Bytes that a slice is counted with at least: what holds it takes about as much."""
_SHARE: Final = 0.5
"""Of all room, for open pages as they will be once whole."""
_WARN_EVERY_S: Final = 60.0


class PageName(NamedTuple):
    """What slices must have in common to be put together."""

    scope: bytes
    """Of the tenant."""
    namespace: bytes
    page_key: bytes
    page: int
    """Its index: a lossy codec un-rotates keys by it."""
    dtype: str
    """Namespaces of lossy codecs do not tell it."""
    assembly: bytes
    """Which computation."""


@dataclass(frozen=True)
class WholePage:
    """A page of which every slice is there."""

    name: PageName
    page: SlicedPage
    began_us: int
    """When the first of its uploads began, in microseconds since 1970."""
    room: int
    """Bytes that are held for it, for whoever takes it to give back."""


class PartialPages:
    """Of one ingress. For one event loop."""

    def __init__(
        self,
        limit: int,
        wait_s: float,
        policies: Policies,
        take: Callable[[bytes, int, int], int],
        give_back: Callable[[bytes, int], None],
        metrics: Metrics,
    ) -> None:
        """
        Args:
            limit: bytes that the ingress may hold.
            wait_s: seconds that slices wait for others.
            policies: what each tenant may have.
            take: takes room, by scope, bytes of a unit and units; raises `Busy` where none is free.
            give_back: gives room back, by scope and bytes.
            metrics: where pages are counted.
        """
        self._limit = limit
        self._wait_s = wait_s
        self._policies = policies
        self._take = take
        self._give_back = give_back
        self._ended = {what: metrics.counter(SLICED_PAGES, what) for what in SLICED_OUTCOMES}
        self._open: dict[PageName, _Open] = {}
        self._encoding: set[PageName] = set()
        self._needed: Counter[bytes] = Counter()
        """Scope → bytes of its open pages, as they will be once whole."""
        self._freed = asyncio.Event()
        self._warned, self._unsaid = -math.inf, 0

    @property
    def waiting(self) -> int:
        """Pages of which slices are here; about right for whoever asks from another thread."""
        return sum(not opened.page.empty for opened in list(self._open.values()))

    @property
    def held_bytes(self) -> int:
        """Bytes of their slices."""
        return sum(opened.room for opened in list(self._open.values()))

    @asynccontextmanager
    async def receiving(self, name: PageName, spec: CacheSpec) -> AsyncIterator[Receipt]:
        """Room for a slice, for the block in which its bytes come. Waits while there is none.

        Args:
            name: of the page.
            spec: of the slice.

        Raises:
            InvalidInput, QuotaExceeded: the whole page would never fit.
            Busy: there is no room, or was none for `slice_wait_s`.
        """
        room = await self._room(name, spec)
        opened = self._opened(name, spec)
        opened.receiving += 1
        receipt = Receipt(self, name, spec, room)
        try:
            yield receipt
        finally:
            opened.receiving -= 1
            if opened.page.empty and not opened.receiving and self._open.get(name) is opened:
                self._close(name)
            if receipt.room:
                self._give_back(name.scope, receipt.room)

    def encoded(self, whole: WholePage) -> Callable[[asyncio.Task[PageDone]], None]:
        """What is to be called once a page that was whole is no longer with an encoder."""
        name, room = whole.name, whole.room

        def done(_: asyncio.Task[PageDone]) -> None:
            self._encoding.discard(name)
            self._give_back(name.scope, room)

        return done

    def tell_freed(self) -> None:
        """To be called when room was given back, by whomever."""
        self._freed.set()
        self._freed = asyncio.Event()

    def drop_all(self) -> None:
        """Ends the wait for slices: nobody will send them here."""
        for name in list(self._open):
            self._end(name, "drained")

    def _add(
        self, receipt: Receipt, checksum: int, pieces: list[Piece], began_us: int
    ) -> WholePage | PageDone | None:
        name = receipt.name
        if name in self._encoding:  # a second time, from a rank that did not hear of the first
            return PageDone(Outcome.IN_PROGRESS)
        opened = self._opened(name, receipt.spec)
        try:
            missing = opened.page.add(Slice.of(receipt.spec), checksum, pieces)
        except InvalidInput:
            self._end(name, "refused")
            raise
        if not missing:
            return None
        opened.room += receipt.room
        receipt.room = 0
        opened.began_us = min(opened.began_us, began_us)
        if opened.timer is None:
            loop = asyncio.get_running_loop()
            opened.timer = loop.call_later(self._wait_s, self._end, name, "expired")
        if not opened.page.complete:
            return None
        self._close(name)
        self._encoding.add(name)
        self._ended["whole"].add()
        return WholePage(name, opened.page, opened.began_us, opened.room)

    def _opened(self, name: PageName, spec: CacheSpec) -> _Open:
        """The open page of a name. One that is being encoded is not opened again."""
        if name in self._open:
            return self._open[name]
        whole = spec.whole
        opened = _Open(SlicedPage(whole, name.page), whole.page_bytes)
        if name not in self._encoding:
            self._open[name] = opened
            self._needed[name.scope] += opened.needed
        return opened

    def _close(self, name: PageName) -> _Open:
        opened = self._open.pop(name)
        self._needed[name.scope] -= opened.needed
        if not self._needed[name.scope]:
            del self._needed[name.scope]
        if opened.timer is not None:
            opened.timer.cancel()
        self.tell_freed()
        return opened

    def _end(self, name: PageName, outcome: str) -> None:
        """Gives a page up."""
        opened = self._close(name)
        if opened.page.empty:
            return
        self._ended[outcome].add()
        self._give_back(name.scope, opened.room)
        if outcome == "expired":
            self._warn(name)

    def _warn(self, name: PageName) -> None:
        """Once a minute: a rank that is gone, or sends elsewhere, loses every page."""
        now = time.monotonic()
        self._unsaid += 1
        if now - self._warned < _WARN_EVERY_S:
            return
        _log.warning(
            "pages lost reason=slices-missing pages=%d wait_s=%g page=%s: do all ranks of the "
            "model send to this ingress?",
            self._unsaid,
            self._wait_s,
            name.page_key.hex()[:16],
        )
        self._warned, self._unsaid = now, 0

    async def _room(self, name: PageName, spec: CacheSpec) -> int:
        """Room for a slice, and for the page that it may be the first of."""
        whole, until = spec.whole.page_bytes, math.inf
        self._check_fits(name.scope, whole)
        size, now = max(spec.page_bytes, MIN_SLICE_ROOM), asyncio.get_running_loop().time
        while True:
            freed = self._freed
            try:
                self._check_opens(name, whole)
                return self._take(name.scope, size, 1) * size
            except Busy:
                # Where no page is here to become whole or to expire, others have the room, as they
                # have it for whole pages: their callers get the same answer.
                if not (self._open or self._encoding) or now() >= until:
                    raise
            until = min(until, now() + self._wait_s)
            try:
                async with asyncio.timeout_at(until):
                    await freed.wait()
            except TimeoutError:
                continue

    def _check_fits(self, scope: bytes, whole: int) -> None:
        """Refuses pages that would never be whole."""
        if whole > self._limit:
            raise InvalidInput(
                f"a page of {whole} bytes is over the server's max_inflight_bytes={self._limit}: "
                "use fewer page_tokens, or raise it"
            )
        most = self._policies.of(scope).max_inflight_bytes
        if most is not None and whole > most:
            raise QuotaExceeded(
                f"a page of {whole} bytes is over the tenant's {most}: use fewer page_tokens, or "
                "have max_inflight_bytes raised"
            )

    def _check_opens(self, name: PageName, whole: int) -> None:
        if name in self._open or name in self._encoding:
            return
        needed, own = self._needed.total(), self._needed[name.scope]
        if needed and needed + whole > self._limit * _SHARE:
            raise Busy(
                f"pages of {needed} bytes wait for slices of other ranks: try again later, or "
                "recompute"
            )
        most = self._policies.of(name.scope).max_inflight_bytes
        if most is not None and own + whole > most:
            raise QuotaExceeded(
                f"pages of {own} of the tenant's {most} bytes wait for slices of other ranks: "
                "offload again later, or have max_inflight_bytes raised"
            )


class Receipt:
    """A slice on its way in."""

    def __init__(self, owner: PartialPages, name: PageName, spec: CacheSpec, room: int) -> None:
        self.name = name
        self.spec = spec
        self.room = room
        """Bytes that are held for it; 0 once they are the page's."""
        self._owner = owner

    def add(self, pieces: list[Piece], checksum: int, began_us: int) -> WholePage | PageDone | None:
        """The slice is here.

        Args:
            pieces: its bytes.
            checksum: of them, which has proved right.
            began_us: when its upload began, in microseconds since 1970.

        Returns:
            The page, if this was the last slice that it lacked: it is then the caller's to encode,
            and what `PartialPages.encoded` gives is to be called at the end. An outcome, if the
            page is with an encoder already. None, if other slices are missing.

        Raises:
            InvalidInput: it does not fit the slices that are here. The page is given up.
        """
        return self._owner._add(self, checksum, pieces, began_us)


@dataclass(eq=False)
class _Open:
    """A page that is not whole yet."""

    page: SlicedPage
    needed: int
    """Its bytes once it is whole."""
    room: int = 0
    """Bytes that are held for its slices."""
    receiving: int = 0
    """Slices on their way in."""
    began_us: int = 1 << 63
    timer: asyncio.TimerHandle | None = None
