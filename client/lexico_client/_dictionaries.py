"""Dictionary sets at the node: in memory, on disk by digest, else from the service."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Final

from lexico_client._crew import Crew
from lexico_client._deadline import Budget, with_retry
from lexico_client._transport import Transport
from lexico_codec.files import write_atomically
from lexico_codec.sets.dictionary import DictionarySet
from lexico_proto.errors import DamagedFrame, InternalError, InvalidInput, LexicoError
from lexico_proto.limits import DIGEST_BYTES, MAX_DICTIONARY_BYTES, PIECE_BYTES
from lexico_proto.v1 import dictionaries_pb2 as dictionaries

_log = logging.getLogger(__name__)

MAX_IN_MEMORY: Final = 8
"""Sets kept in memory; the one used longest ago goes first."""


class DictionaryShelf:
    """Finds a set by its digest. Its digest is checked wherever it comes from."""

    def __init__(self, transport: Transport, folder: Path, crew: Crew, seconds: float) -> None:
        """
        Args:
            transport: where sets come from at last.
            folder: where they are kept, one file named by its digest each.
            crew: reads, checks and writes files.
            seconds: time for one fetch.
        """
        self._transport = transport
        self._folder = folder
        self._crew = crew
        self._seconds = seconds
        self._memory: OrderedDict[bytes, DictionarySet] = OrderedDict()
        self._fetches: dict[bytes, asyncio.Task[DictionarySet]] = {}

    def keep(self, dictionary: DictionarySet) -> None:
        """Keeps a set in memory."""
        self._memory[dictionary.digest] = dictionary
        self._memory.move_to_end(dictionary.digest)
        while len(self._memory) > MAX_IN_MEMORY:
            self._memory.popitem(last=False)

    async def get(self, digest: bytes) -> DictionarySet:
        """The set of that digest. Callers that ask at the same time share one fetch.

        Raises:
            InvalidInput: no digest of 32 bytes.
            UnknownDictionary: the service has none of that digest.
            DamagedFrame: what the service sent is another set, or none.
            LexicoError: the service could not be asked.
        """
        if not isinstance(digest, bytes) or len(digest) != DIGEST_BYTES:
            raise InvalidInput(f"a dictionary digest has {DIGEST_BYTES} bytes")
        kept = self._memory.get(digest)
        if kept is not None:
            self._memory.move_to_end(digest)
            return kept
        loop = asyncio.get_running_loop()
        task = self._fetches.get(digest)
        if task is None or task.get_loop() is not loop:  # that loop is closed, or the parent's
            task = loop.create_task(self._find(digest))
            self._fetches[digest] = task
            task.add_done_callback(lambda done: self._fetched(digest, done))
        # Shielded: one caller that gives up does not take the set from the others.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ends fetches that still run."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._fetches.values() if task.get_loop() is loop]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fetched(self, digest: bytes, task: asyncio.Task[DictionarySet]) -> None:
        if self._fetches.get(digest) is task:
            del self._fetches[digest]
        if not task.cancelled():
            task.exception()  # marked as seen, should every caller have gone

    async def _find(self, digest: bytes) -> DictionarySet:
        path = self._folder / f"{digest.hex()}.safetensors"
        budget = Budget("fetch dictionary", self._seconds)
        async with self._crew.shift(budget) as shift:
            found = await shift.result(shift.start(_read, path, digest))
            if found is None:
                async with budget.bound():
                    data = await with_retry(budget, lambda: self._download(digest, budget))
                found = await shift.result(shift.start(_checked, data, digest))
                await shift.result(shift.start(_write, path, found))
        self.keep(found)
        return found

    async def _download(self, digest: bytes, budget: Budget) -> bytes:
        data, declared = bytearray(), 0
        request = dictionaries.FetchRequest(digest=digest)
        async with aclosing(self._transport.fetch(request, budget.left())) as stream:
            async for message in stream:
                declared = declared or message.artefact_bytes
                if not 0 < declared <= MAX_DICTIONARY_BYTES or message.artefact_bytes != declared:
                    raise InternalError(f"fetch: an artefact of {message.artefact_bytes} bytes")
                if len(data) + len(message.data) > declared:
                    raise InternalError("fetch: more bytes came than were announced")
                data += message.data
        if not data or len(data) != declared:
            raise InternalError(f"fetch: {len(data)} of {declared} bytes came")
        return bytes(data)


async def register_messages(
    dictionary: DictionarySet,
) -> AsyncGenerator[dictionaries.RegisterRequest, None]:
    """Header, then the artefact in pieces."""
    data = memoryview(dictionary.to_bytes())
    header = dictionaries.RegisterHeader(digest=dictionary.digest, artefact_bytes=len(data))
    yield dictionaries.RegisterRequest(header=header)
    for start in range(0, len(data), PIECE_BYTES):
        yield dictionaries.RegisterRequest(data=bytes(data[start : start + PIECE_BYTES]))


def _checked(data: bytes, digest: bytes) -> DictionarySet:
    try:
        dictionary = DictionarySet.load(data)
    except InvalidInput as error:
        raise DamagedFrame(f"dictionary {digest.hex()[:16]}: {error}") from error
    if dictionary.digest != digest:
        raise DamagedFrame(f"dictionary {digest.hex()[:16]}: the bytes are another set's")
    return dictionary


def _read(path: Path, digest: bytes) -> DictionarySet | None:
    """The set on disk; None where there is none, or none that is sound."""
    try:
        with path.open("rb") as file:
            return _checked(file.read(MAX_DICTIONARY_BYTES + 1), digest)
    except FileNotFoundError:
        return None
    except (OSError, LexicoError) as error:
        _log.warning("dictionary file unusable, fetching it again: path=%s error=%s", path, error)
        return None


def _write(path: Path, dictionary: DictionarySet) -> None:
    """Keeps the set on disk; a disk that will not take it costs a fetch next time, no more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, dictionary.to_bytes())
    except (OSError, LexicoError) as error:
        _log.warning("dictionary not kept on disk: path=%s error=%s", path, error)
