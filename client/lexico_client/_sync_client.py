"""The synchronous face: the async client on an event loop of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from lexico_client._async_client import AsyncClient, Wait
from lexico_client._coding import Coding, WithoutSet
from lexico_client._crew import Access
from lexico_client._deadline import Clock
from lexico_client._endpoint import Endpoint
from lexico_client._explain import Explanation
from lexico_client._load import Target
from lexico_client._observer import Observer
from lexico_client._offload import PageSource
from lexico_client._results import Described, DictionaryEntry, Loaded, LoadSeconds, Match, PutReport
from lexico_client._runner import Runner
from lexico_client._set_calls import ToLoad
from lexico_client._settings import Timeouts, check_seconds
from lexico_client._tls import Tls
from lexico_client._transport import Transport
from lexico_codec.inputs import PageDigests
from lexico_codec.keys import TokenIds
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import DEFAULT_RECENT_TOKENS, CacheSpec
from lexico_proto.errors import ConfigurationError, LexicoError
from lexico_proto.metrics import PROCESS, Metrics

T = TypeVar("T")


class Client:
    """Shares the caches of one node, from any number of threads.

    Arguments, results and errors are those of `AsyncClient`. So is what holds in a forked child.
    """

    def __init__(
        self,
        *,
        reload: str | Endpoint | None = None,
        offload: str | Endpoint | None = None,
        token: str | None = None,
        dictionaries_dir: str | os.PathLike[str] | None = None,
        timeouts: Timeouts | None = None,
        threads: int = 2,
        transport: Transport | None = None,
        metrics: Metrics = PROCESS,
        tls: Tls | None = None,
        observer: Observer | None = None,
    ) -> None:
        """As `AsyncClient`; the first call starts a thread."""
        self._client = AsyncClient(
            reload=reload,
            offload=offload,
            token=token,
            dictionaries_dir=dictionaries_dir,
            timeouts=timeouts,
            threads=threads,
            transport=transport,
            metrics=metrics,
            tls=tls,
            observer=observer,
        )
        self._timeouts = timeouts or Timeouts()
        self._runner = Runner("lexico-client-loop")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends calls that still run (a load is a miss, others raise `Cancelled`) and the thread.
        Calling it again is fine, from anywhere."""
        self._runner.close(self._shut_down)

    def match(
        self,
        spec: CacheSpec,
        token_ids: TokenIds,
        *,
        inputs: PageDigests = (),
        apart: bool = False,
        renew: bool = False,
        timeout: float | None = None,
    ) -> Match:
        """As `AsyncClient.match`."""
        work = self._client.match(
            spec, token_ids, inputs=inputs, apart=apart, renew=renew, timeout=timeout
        )
        return self._run(work, self._timeouts.match, timeout)

    def explain(
        self,
        spec: CacheSpec,
        token_ids: TokenIds,
        *,
        inputs: PageDigests = (),
        against: CacheSpec | None = None,
        timeout: float | None = None,
    ) -> Explanation:
        """As `AsyncClient.explain`."""
        work = self._client.explain(
            spec, token_ids, inputs=inputs, against=against, timeout=timeout
        )
        return self._run(work, self._timeouts.match, timeout)

    def offload(
        self,
        spec: CacheSpec,
        token_ids: TokenIds,
        source: PageSource,
        *,
        inputs: PageDigests = (),
        pages: int | None = None,
        wait: Wait = "committed",
        assembly: bytes = b"",
        timeout: float | None = None,
    ) -> PutReport:
        """As `AsyncClient.offload`."""
        work = self._client.offload(
            spec,
            token_ids,
            source,
            inputs=inputs,
            pages=pages,
            wait=wait,
            assembly=assembly,
            timeout=timeout,
        )
        return self._run(work, self._timeouts.offload, timeout)

    def load(
        self,
        spec: CacheSpec,
        token_ids: TokenIds,
        target: Target,
        *,
        inputs: PageDigests = (),
        pages: range | None = None,
        timeout: float | None = None,
    ) -> Loaded:
        """As `AsyncClient.load`."""
        clock, access = Clock(), Access()

        def missed(error: LexicoError) -> Loaded:
            seconds = LoadSeconds(total=clock.total())
            return Loaded(0, 0, 0, error, 0, seconds, access.end())

        work = self._client._counted_load(spec, token_ids, target, inputs, pages, timeout, access)
        return self._run(work, self._timeouts.load, timeout, missed)

    def coding(
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
        """As `AsyncClient.coding`."""
        work = self._client.coding(
            spec,
            codec,
            codec_config=codec_config,
            dictionary=dictionary,
            without_set=without_set,
            known_positions=known_positions,
            model=model,
        )
        made = self._run(work, self._timeouts.match + self._timeouts.dictionaries)
        made.look_by(self._look_soon)
        return made

    def spec_to_load(
        self,
        coding: Coding,
        spec: CacheSpec,
        token_ids: TokenIds,
        *,
        recent_tokens: int = DEFAULT_RECENT_TOKENS,
        inputs: PageDigests = (),
        timeout: float | None = None,
    ) -> ToLoad:
        """As `AsyncClient.spec_to_load`."""
        now = coding.spec(spec)
        if coding.former(spec) is None:
            return ToLoad(now, timeout)
        work = self._client.spec_to_load(
            coding, spec, token_ids, recent_tokens=recent_tokens, inputs=inputs, timeout=timeout
        )
        left = ToLoad(now, timeout)
        return self._run(work, self._timeouts.load, timeout, lambda _: left)

    def register_dictionary(
        self, dictionary: DictionarySet, *, timeout: float | None = None
    ) -> bool:
        """As `AsyncClient.register_dictionary`."""
        work = self._client.register_dictionary(dictionary, timeout=timeout)
        return self._run(work, self._timeouts.dictionaries, timeout)

    def publish_dictionary(
        self,
        dictionary: DictionarySet,
        spec: CacheSpec,
        *,
        any_weights: bool = False,
        shared: bool = False,
        timeout: float | None = None,
    ) -> tuple[str, ...]:
        """As `AsyncClient.publish_dictionary`."""
        work = self._client.publish_dictionary(
            dictionary, spec, any_weights=any_weights, shared=shared, timeout=timeout
        )
        return self._run(work, self._timeouts.dictionaries, timeout)

    def take_back_dictionary(
        self,
        spec: CacheSpec,
        *,
        any_weights: bool = False,
        shared: bool = False,
        timeout: float | None = None,
    ) -> tuple[str, ...]:
        """As `AsyncClient.take_back_dictionary`."""
        work = self._client.take_back_dictionary(
            spec, any_weights=any_weights, shared=shared, timeout=timeout
        )
        return self._run(work, self._timeouts.dictionaries, timeout)

    def fetch_dictionary(self, digest: bytes) -> DictionarySet:
        """As `AsyncClient.fetch_dictionary`."""
        return self._run(self._client.fetch_dictionary(digest), self._timeouts.dictionaries)

    def keep_dictionary(self, dictionary: DictionarySet) -> None:
        """As `AsyncClient.keep_dictionary`."""
        self._run(self._client.keep_dictionary(dictionary), self._timeouts.dictionaries)

    def list_dictionaries(self, *, timeout: float | None = None) -> list[DictionaryEntry]:
        """As `AsyncClient.list_dictionaries`."""
        work = self._client.list_dictionaries(timeout=timeout)
        return self._run(work, self._timeouts.dictionaries, timeout)

    def describe(self, *, timeout: float | None = None) -> Described:
        """As `AsyncClient.describe`."""
        return self._run(self._client.describe(timeout=timeout), self._timeouts.match, timeout)

    def _look_soon(self, coding: Coding) -> None:
        self._runner.begin(self._client._look(coding))

    def _run(
        self,
        work: Coroutine[Any, Any, T],
        usual: float,
        timeout: float | None = None,
        instead: Callable[[LexicoError], T] | None = None,
    ) -> T:
        try:
            seconds = usual if timeout is None else check_seconds("timeout", timeout)
        except ConfigurationError:
            work.close()
            raise
        return self._runner.run(work, seconds, instead)

    async def _shut_down(self) -> None:
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()
        await asyncio.get_running_loop().shutdown_asyncgens()
