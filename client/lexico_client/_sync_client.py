"""The synchronous face: the async client on an event loop of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self, TypeVar

from lexico_client._async_client import AsyncClient, Wait
from lexico_client._load import Target
from lexico_client._offload import PageSource
from lexico_client._results import DictionaryEntry, Loaded, Match, PutReport
from lexico_client._settings import Timeouts
from lexico_client._transport import Transport
from lexico_codec.keys import TokenIds
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import Cancelled

T = TypeVar("T")


class Client:
    """Shares the caches of one node, from any number of threads.

    Arguments, results and errors are those of `AsyncClient`.
    """

    def __init__(
        self,
        *,
        reload: str | None = None,
        offload: str | None = None,
        token: str | None = None,
        dictionaries_dir: str | os.PathLike[str] | None = None,
        timeouts: Timeouts | None = None,
        threads: int = 2,
        transport: Transport | None = None,
    ) -> None:
        """As `AsyncClient`; starts one thread, connects nothing yet."""
        self._client = AsyncClient(
            reload=reload,
            offload=offload,
            token=token,
            dictionaries_dir=dictionaries_dir,
            timeouts=timeouts,
            threads=threads,
            transport=transport,
        )
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        # A daemon, so that a program that forgets to close still ends.
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="lexico-client-loop", daemon=True
        )
        self._thread.start()

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
        """Ends calls that still run (they raise `Cancelled`) and the thread. Calling it again is
        fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def match(self, spec: CacheSpec, token_ids: TokenIds, *, timeout: float | None = None) -> Match:
        """As `AsyncClient.match`."""
        return self._run(self._client.match(spec, token_ids, timeout=timeout))

    def offload(
        self,
        spec: CacheSpec,
        token_ids: TokenIds,
        source: PageSource,
        *,
        pages: int | None = None,
        wait: Wait = "committed",
        timeout: float | None = None,
    ) -> PutReport:
        """As `AsyncClient.offload`."""
        return self._run(
            self._client.offload(spec, token_ids, source, pages=pages, wait=wait, timeout=timeout)
        )

    def load(
        self,
        spec: CacheSpec,
        token_ids: TokenIds,
        target: Target,
        *,
        timeout: float | None = None,
    ) -> Loaded:
        """As `AsyncClient.load`."""
        return self._run(self._client.load(spec, token_ids, target, timeout=timeout))

    def register_dictionary(
        self, dictionary: DictionarySet, *, timeout: float | None = None
    ) -> bool:
        """As `AsyncClient.register_dictionary`."""
        return self._run(self._client.register_dictionary(dictionary, timeout=timeout))

    def fetch_dictionary(self, digest: bytes) -> DictionarySet:
        """As `AsyncClient.fetch_dictionary`."""
        return self._run(self._client.fetch_dictionary(digest))

    def keep_dictionary(self, dictionary: DictionarySet) -> None:
        """As `AsyncClient.keep_dictionary`."""
        self._run(self._client.keep_dictionary(dictionary))

    def list_dictionaries(self, *, timeout: float | None = None) -> list[DictionaryEntry]:
        """As `AsyncClient.list_dictionaries`."""
        return self._run(self._client.list_dictionaries(timeout=timeout))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("the client's own event loop cannot wait for itself")
        done = threading.Event()
        with self._lock:
            if self._closed:
                work.close()
                raise Cancelled("the client is closed")
            future = asyncio.run_coroutine_threadsafe(_signalling(work, done), self._loop)
        try:
            return future.result()
        except CancelledError as error:
            raise Cancelled("the client was closed during the call") from error
        finally:
            # An interrupt ends the wait, not the work: the caller's memory is in use until it has
            # ended.
            if not future.done():
                future.cancel()
                done.wait()

    async def _shut_down(self) -> None:
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()
        await asyncio.get_running_loop().shutdown_asyncgens()


async def _signalling(work: Coroutine[Any, Any, T], done: threading.Event) -> T:
    try:
        return await work
    finally:
        done.set()
