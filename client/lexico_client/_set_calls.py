"""The calls of a client that are about dictionary sets, and about which of them codes a model."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lexico_client._coding import Coding, WithoutSet, checked_without_set
from lexico_client._coding_counts import CodingCounts
from lexico_client._crew import Crew
from lexico_client._deadline import Budget, with_retry
from lexico_client._dictionaries import DictionaryShelf, register_messages
from lexico_client._ids import LATE, ids_of
from lexico_client._match import match_pages
from lexico_client._parts import keys_of
from lexico_client._results import DictionaryEntry, entry_of
from lexico_client._settings import Timeouts
from lexico_client._transport import Transport
from lexico_client._weights_files import fingerprint_files
from lexico_codec.inputs import PageDigests, checked_inputs
from lexico_codec.keys import TokenIds
from lexico_codec.sets.choose import check_model
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.sets.models import model_names
from lexico_codec.spec import DEFAULT_RECENT_TOKENS, CacheSpec
from lexico_proto.errors import LexicoError
from lexico_proto.v1 import dictionaries_pb2 as pb


class ToLoad(NamedTuple):
    """What to load a prompt by."""

    spec: CacheSpec
    timeout: float | None
    """Seconds that are left for the load; None for the usual ones, of which none went."""


class SetCalls(ABC):
    """A part of `AsyncClient`."""

    _transport: Transport
    _crew: Crew
    _shelf: DictionaryShelf
    _timeouts: Timeouts
    _counts: CodingCounts
    _looks: set[asyncio.Task[None]]

    @abstractmethod
    def _check_open(self) -> None: ...

    @abstractmethod
    def _budget(self, what: str, timeout: float | None, usual: float) -> Budget: ...

    async def coding(
        self,
        spec: CacheSpec,
        codec: str = "balanced",
        *,
        codec_config: Mapping[str, Any] | None = None,
        dictionary: DictionarySet | bytes | None = None,
        without_set: WithoutSet = "lossless",
        known_positions: bool = True,
        model: str = "",
    ) -> Coding:
        """What a model's pages are coded with, and will be once there is a set for it.

        The set is the one given, else the built-in one that fits the model, else the one that is
        published for it (`publish_dictionary`). Where there is none, pages are lossless, a warning
        says so once, and the service is asked again every `Timeouts.sets` seconds or so, when the
        coding is used: a set that was published meanwhile is checked, and taken over.

        Args:
            spec: of the model, of which pages belong to it while there is no set: codec lossless.
            codec: name of a preset or of a codec.
            codec_config: a codec's parameters; a preset takes none.
            dictionary: the set, or the digest of one that is registered.
            without_set: "refuse" for an error where there is no set now, published or not.
            known_positions: whether pages are those of sequences that begin at position 0. False
                for pages that each are a sequence of their own, wherever they lie in a prompt.
            model: what `lexico train --model` is to be given, for messages.

        Raises:
            UnknownCodec: no preset and no codec of that name.
            ConfigurationError: a parameter that cannot be used, or several built-in sets that serve
                equally; a lossy codec that cannot do without positions; and no set, where that is
                to be refused.
            DictionaryMismatch: the set given is for another model or another codec.
            ShapeMismatch: the codec cannot code such a cache.
        """
        refused = checked_without_set(without_set) == "refuse"
        self._check_open()
        coding = Coding(
            spec,
            codec,
            codec_config,
            dictionary,
            known_positions=known_positions,
            model=model,
            every=self._timeouts.sets,
            counts=self._counts,
            kick=self._look_soon,
        )
        if coding.dictionary is not None:
            self._shelf.keep(coding.dictionary)
        await self._look(coding)
        if refused:
            coding.refuse()
        if coding.waiting:
            coding.say(elsewhere=await self._differs(model, spec.weights))
        return coding

    async def spec_to_load(
        self,
        coding: Coding,
        spec: CacheSpec,
        token_ids: TokenIds,
        *,
        recent_tokens: int = DEFAULT_RECENT_TOKENS,
        inputs: PageDigests = (),
        timeout: float | None = None,
    ) -> ToLoad:
        """Which spec gives most of a prompt: the one of now, or that of before the set came.

        It asks nobody, but for a page's lifetime after a set was taken over. Then it asks for the
        pages of now, and only where some are missing for those of before. One load is of one of the
        two: pages of both are never mixed.

        Args:
            coding: of the model.
            spec: as for `Coding.spec`.
            token_ids: the prompt from position 0.
            recent_tokens: newest tokens that are not to be loaded, see
                `CacheSpec.reloadable_tokens`.
            inputs: as for `match`.
            timeout: seconds that question and load may take together, in place of `Timeouts.load`.

        Raises:
            TokenCountMismatch, InvalidInput: as `match`. What the service does is never raised.
        """
        now, former = coding.spec(spec), coding.former(spec)
        if former is None:
            return ToLoad(now, timeout)
        budget = self._budget("load", timeout, self._timeouts.load)
        try:
            ids = await ids_of(token_ids, self._crew, budget)
        except LATE:
            return ToLoad(now, 0.001)
        inputs = checked_inputs(inputs, len(ids) // spec.page_tokens, spec.page_tokens)
        best = now
        try:
            self._check_open()
            most, there = await self._usable(now, ids, recent_tokens, inputs, budget)
            if there < most:
                _, before = await self._usable(former, ids, recent_tokens, inputs, budget)
                best = former if before > there else now
        except LexicoError:
            pass  # the load says what is wrong
        end = budget.end - asyncio.get_running_loop().time()
        return ToLoad(best, max(end, 0.001))

    async def register_dictionary(
        self, dictionary: DictionarySet, *, timeout: float | None = None
    ) -> bool:
        """Makes a dictionary set known to the service; False where it was.

        Raises:
            LexicoError: the service refused it or could not answer.
        """
        budget = self._budget("register", timeout, self._timeouts.dictionaries)
        self._check_open()
        self._shelf.keep(dictionary)
        async with budget.bound():
            response = await with_retry(
                budget,
                lambda: self._transport.register(register_messages(dictionary), budget.left()),
            )
        return response.added

    async def publish_dictionary(
        self,
        dictionary: DictionarySet,
        spec: CacheSpec,
        *,
        any_weights: bool = False,
        shared: bool = False,
        timeout: float | None = None,
    ) -> tuple[str, ...]:
        """Registers a set, and has nodes of a model take it that have none: see `coding`.

        Args:
            dictionary: the set.
            spec: any of the model's: what counts are weights, shape and rotary embedding.
            any_weights: also for models of the same shape and rotary embedding for whose weights
                none is published: these ones with an adapter, say, or cast while loading. Codec
                lexico-residual refuses pages of weights that are nothing like those that its set
                was made from; others lose quality.
            shared: for every tenant, which takes the role operator.
            timeout: seconds for both, in place of `Timeouts.dictionaries`.

        Returns:
            The codecs that the set is published for.

        Raises:
            DictionaryMismatch: the set is of another model.
            PermissionDenied: the caller has not the role admin.
            Unsupported: a server of an earlier release.
            LexicoError: the service refused, or could not answer.
        """
        check_model(dictionary, spec.whole_geometry)
        budget = self._budget("publish", timeout, self._timeouts.dictionaries)
        await self.register_dictionary(dictionary, timeout=budget.left())
        return await self._publish(dictionary.digest, spec, any_weights, shared, budget.left())

    async def take_back_dictionary(
        self,
        spec: CacheSpec,
        *,
        any_weights: bool = False,
        shared: bool = False,
        timeout: float | None = None,
    ) -> tuple[str, ...]:
        """Undoes `publish_dictionary`, for nodes that start from now on; the set stays registered.

        Arguments and errors are those of `publish_dictionary`.

        Returns:
            The codecs that a set was published for.
        """
        return await self._publish(b"", spec, any_weights, shared, timeout)

    async def fetch_dictionary(self, digest: bytes) -> DictionarySet:
        """The dictionary set of that digest: from memory, from disk, else from the service.

        Raises:
            InvalidInput: no digest of 32 bytes.
            UnknownDictionary: the service has none of that digest.
            LexicoError: the service could not give it.
        """
        budget = self._budget("fetch dictionary", None, self._timeouts.dictionaries)
        self._check_open()
        async with budget.bound():
            return await self._shelf.get(digest)

    async def keep_dictionary(self, dictionary: DictionarySet) -> None:
        """Keeps a set that the caller has, so that a load need not fetch it."""
        self._shelf.keep(dictionary)

    async def list_dictionaries(self, *, timeout: float | None = None) -> list[DictionaryEntry]:
        """Dictionary sets that the service has for this tenant.

        Raises:
            LexicoError: the service could not answer.
        """
        budget = self._budget("list", timeout, self._timeouts.dictionaries)
        self._check_open()
        async with budget.bound():
            response = await with_retry(
                budget, lambda: self._transport.list_dictionaries(budget.left())
            )
        return [entry_of(info) for info in response.dictionaries]

    async def _publish(
        self,
        digest: bytes,
        spec: CacheSpec,
        any_weights: bool,
        shared: bool,
        timeout: float | None,
    ) -> tuple[str, ...]:
        names = model_names(spec.weights, spec.whole_geometry)
        request = pb.PublishRequest(
            digest=digest, models=names if any_weights else names[:1], shared=shared
        )
        budget = self._budget("publish", timeout, self._timeouts.dictionaries)
        self._check_open()
        async with budget.bound():
            answer = await with_retry(
                budget, lambda: self._transport.publish(request, budget.left())
            )
        return tuple(answer.codecs)

    async def _differs(self, model: str, weights: bytes) -> bool:
        """Whether a model's files have another fingerprint than the model: a set that is published
        for them is none for it."""
        if not Path(model).is_dir():
            return False
        try:
            async with self._crew.shift(
                self._budget("files", None, self._timeouts.dictionaries)
            ) as shift:
                return await shift.result(shift.start(fingerprint_files, model)) != weights
        except LexicoError:
            return False

    def _look_soon(self, coding: Coding) -> None:
        """Has a look for a set run beside the caller; nothing where that is not on the loop."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        task = loop.create_task(self._look(coding))
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def _look(self, coding: Coding) -> None:
        async def find(request: pb.FindRequest) -> pb.FindResponse:
            self._check_open()
            budget = self._budget("find", None, self._timeouts.match)
            async with budget.bound():
                return await with_retry(
                    budget, lambda: self._transport.find(request, budget.left())
                )

        await coding.look(find, self.fetch_dictionary)

    async def _end_looks(self) -> None:
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._looks if task.get_loop() is loop]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _usable(
        self,
        spec: CacheSpec,
        ids: Any,
        recent_tokens: int,
        inputs: tuple[bytes, ...],
        budget: Budget,
    ) -> tuple[int, int]:
        """Tokens of a prompt that a load by a spec could give, and how many it would give now."""
        most = spec.reloadable_tokens(len(ids), recent_tokens)
        pages = spec.pages_of(most)
        async with budget.bound():
            keys = await keys_of(spec, ids[: pages * spec.page_tokens], inputs[:pages])
            # As of an identity: the load itself is counted.
            found = await match_pages(
                self._transport, spec.identity, keys, budget, self._timeouts.match, prefix=True
            )
        return most, min(most, found.tokens)
