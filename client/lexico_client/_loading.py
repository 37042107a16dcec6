"""One load, from the match to what came of it."""

from __future__ import annotations

from contextlib import AsyncExitStack

import numpy as np
import numpy.typing as npt

from lexico_client._crew import Access, Crew
from lexico_client._deadline import Budget, Clock
from lexico_client._dictionaries import DictionaryShelf
from lexico_client._load import PageView, PrefixLoader, Target
from lexico_client._match import match_pages
from lexico_client._parts import keys_of
from lexico_client._results import Loaded, LoadSeconds, Match
from lexico_client._settings import Timeouts
from lexico_client._transport import Transport
from lexico_codec.inputs import PageDigests
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import Cancelled, DeadlineExpired, LexicoError, TokenCountMismatch


class Loading:
    """Brings the leading pages that are stored: what fails is a shorter prefix."""

    def __init__(
        self,
        transport: Transport,
        crew: Crew,
        shelf: DictionaryShelf,
        timeouts: Timeouts,
        budget: Budget,
        access: Access,
    ) -> None:
        """
        Args:
            transport: the service.
            crew: threads that write to the caller's memory.
            shelf: dictionary sets.
            timeouts: seconds for the steps.
            budget: time for all of it.
            access: the right to the caller's memory, which ends with the call.
        """
        self._transport = transport
        self._crew = crew
        self._shelf = shelf
        self._timeouts = timeouts
        self._budget = budget
        self._access = access

    async def run(
        self,
        spec: CacheSpec,
        token_ids: npt.NDArray[np.uint32],
        inputs: PageDigests,
        target: Target,
        pages: range | None,
        clock: Clock,
    ) -> Loaded:
        """Matches, asks the target for memory, and fills it.

        Args:
            spec, token_ids, inputs, target: see `AsyncClient.load`.
            pages: that a match has found; None to ask which there are.
            clock: runs since the call began.

        Raises:
            Exception: whatever the target raised.
        """
        budget, access = self._budget, self._access
        matched, dictionary = Match(0, 0, (), ()), None
        async with AsyncExitStack() as stack:
            try:
                shift = await stack.enter_async_context(self._crew.shift(budget, access))
                async with budget.bound():
                    keys = await keys_of(spec, token_ids, inputs)
                    if pages is None:
                        matched = await match_pages(
                            self._transport, spec, keys, budget, self._timeouts.match, prefix=True
                        )
                        pages = range(matched.pages)
                    else:
                        matched = _known(spec, keys, pages)
                    match_seconds = clock.lap()
                    if matched.pages and spec.codec.needs_dictionary:
                        dictionary = await self._shelf.get(spec.dictionary)
                dictionary_seconds = clock.lap()
                if matched.pages == 0:
                    seconds = LoadSeconds(clock.total(), match_seconds, dictionary_seconds)
                    return Loaded(0, 0, 0, None, 0, seconds)
                viewing = shift.start(_view_of, target, matched.pages, access)
            except LexicoError as error:
                seconds = LoadSeconds(total=clock.total())
                return Loaded(0, 0, matched.pages, error, 0, seconds)
            if not await shift.finished(viewing):
                seconds = LoadSeconds(clock.total(), match_seconds, dictionary_seconds)
                late = DeadlineExpired("load: the target gave no memory within the deadline")
                return Loaded(0, 0, matched.pages, late, 0, seconds, access.end())
            view = viewing.result()
            wanted, idle = keys[pages.start : pages.stop], self._timeouts.idle
            loader = PrefixLoader(spec, wanted, view, dictionary, shift, idle, pages.start)
            await loader.run(self._transport, budget)
        return Loaded(
            tokens=loader.pages * spec.page_tokens,
            pages=loader.pages,
            matched_pages=matched.pages,
            reason=loader.reason,
            bytes_received=loader.bytes_received,
            seconds=LoadSeconds(
                clock.total(), match_seconds, dictionary_seconds, loader.decode_seconds
            ),
            unfinished=access.end(),
        )


def checked_pages(pages: range, full: int) -> range:
    """Pages of a sequence that a caller wants.

    Args:
        pages: which.
        full: how many the sequence has.

    Raises:
        TokenCountMismatch: no run of pages that are there.
    """
    if pages.step != 1 or not 0 <= pages.start <= pages.stop <= full:
        raise TokenCountMismatch(f"pages={pages}: the sequence has {full} full pages")
    return pages


def _known(spec: CacheSpec, keys: list[bytes], pages: range) -> Match:
    """What a match has said before."""
    wanted = tuple(keys[pages.start : pages.stop])
    return Match(len(wanted) * spec.page_tokens, len(wanted), (True,) * len(wanted), wanted)


def _view_of(target: Target, pages: int, access: Access) -> PageView:
    """In the worker thread: the target's views."""
    with access.using() as allowed:
        if not allowed:
            raise Cancelled("load: the call ended before its target was asked")
        return target(pages)
