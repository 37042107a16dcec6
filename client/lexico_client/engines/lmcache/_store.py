"""Objects to the service and back: one call for a look-up, one for each object that moves.

All of it runs on the service's loop. Nothing is raised to LMCache: what fails is not found, not
loaded or not stored, is counted, and is warned of once a minute.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from lexico_client._async_client import AsyncClient
from lexico_client._coding import Coding, checked_without_set
from lexico_client._crew import Access
from lexico_client._results import PageOutcome
from lexico_client.engines._counts import Counts
from lexico_client.engines._turns import Left, in_turn, until
from lexico_client.engines.lmcache._config import AdapterConfig
from lexico_client.engines.lmcache._pages import ObjectKey, Page, Pages
from lexico_codec.codecs.codec import Codec
from lexico_codec.forks import renew_in_children
from lexico_codec.inputs import PageInputs
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import (
    Cancelled,
    ConfigurationError,
    DeadlineExpired,
    LexicoError,
    UnknownDictionary,
    Unsupported,
)

T = TypeVar("T")

Layouts = Mapping[int, tuple[Sequence[int], torch.dtype]]
"""Object group → shape and type of its objects, as a look-up is told them."""
Object = tuple[ObjectKey, Tensor]
"""Name and content, in the shape that the engine gave it."""

_UNDER_WAY: Final = (PageOutcome.STORED, PageOutcome.RECEIVED)
_LOOK_S: Final = 0.001


class ObjectStore:
    """Look-ups, loads and stores of one LMCache server."""

    def __init__(
        self, pages: Pages, client: AsyncClient, settings: AdapterConfig, counts: Counts
    ) -> None:
        """
        Args:
            pages: makes pages of objects.
            client: closed by its owner.
            settings: of the adapter.
            counts: of this.

        Raises:
            ConfigurationError: a dictionary set that cannot be read.
        """
        self._pages = pages
        self._client = client
        self._settings = settings
        self._counts = counts
        self._given = _set_given(settings)
        self._codings: dict[CacheSpec, Coding] = {}
        self.after_fork()
        renew_in_children(self)

    def after_fork(self) -> None:
        """A child has locks and turns of its own, and nothing under way."""
        self._learning = asyncio.Lock()
        self._loading = asyncio.Semaphore(self._settings.concurrent_loads)
        self._storing = asyncio.Semaphore(self._settings.concurrent_stores)
        self._lock = threading.Lock()
        self._held = 0
        self._stores = 0

    @property
    def stores_under_way(self) -> int:
        """Calls of `store` that have not ended."""
        return self._stores

    @property
    def held_bytes(self) -> int:
        """Bytes of objects that are being stored: LMCache keeps them until then."""
        return self._held

    async def find(self, keys: Sequence[ObjectKey], layouts: Layouts) -> list[bool]:
        """Which objects are stored: one call for those of one model and salt.

        What a lossy codec has of a prompt's newest tokens is not told of: they decide the next
        ones, and are computed.

        Args:
            keys: names, of all chunks of a prompt in their order.
            layouts: of their groups.
        """
        there = [False] * len(keys)
        try:
            async with asyncio.timeout(self._settings.match_seconds):
                pages = [await self._page(key, *_layout_of(layouts, key)) for key in keys]
                self._counts.tokens("asked", sum(page.shape.tokens for page in pages))
                for spec, places in _by_spec(pages).items():
                    found = await self._present(spec, [pages[place] for place in places])
                    # A prompt has one token at least behind its last chunk.
                    newest = -(-(self._settings.recent_tokens - 1) // spec.page_tokens)
                    older = len(places) - newest
                    for number, (place, codec) in enumerate(zip(places, found, strict=True)):
                        there[place] = codec is not None and (codec.lossless or number < older)
        except TimeoutError:
            late = DeadlineExpired(f"match: no answer within {self._settings.match_seconds:g} s")
            return self._not_found(keys, late)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a miss
            return self._not_found(keys, error)
        if keys:
            self._counts.request("hit" if there[0] else "miss")
        promised = (page.shape.tokens for page, here in zip(pages, there, strict=True) if here)
        self._counts.tokens("promised", sum(promised))
        return there

    async def load(self, objects: Sequence[Object]) -> list[bool]:
        """Fills objects, each for itself: says which are whole. Of others the content is undefined.

        Returns once nobody writes to any of them.
        """
        left = until(self._settings.load_seconds)
        return await asyncio.gather(*(self._loaded(key, into, left) for key, into in objects))

    async def store(self, objects: Sequence[Object]) -> tuple[bool, int]:
        """Sends the objects that the service lacks; returns once nobody reads any of them.

        Returns:
            Whether all are there now, and the bytes that those which were sent take.
        """
        size = sum(tensor.nbytes for _, tensor in objects)
        with self._lock:
            fits = self._held + size <= self._settings.staging_bytes
            self._held += size if fits else 0
            self._stores += fits
        if not fits:
            self._counts.pages("dropped", len(objects))
            return False, 0
        self._counts.staged(self._held)
        try:
            left = until(self._settings.offload_seconds)
            sent = await asyncio.gather(*(self._stored(*each, left) for each in objects))
        finally:
            with self._lock:
                self._held -= size
                self._stores -= 1
            self._counts.staged(self._held)
        return None not in sent, sum(each or 0 for each in sent)

    async def drained(self, seconds: float) -> bool:
        """Waits for stores; whether all ended."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self._stores and loop.time() < end:
            await asyncio.sleep(_LOOK_S)
        return not self._stores

    def _not_found(self, keys: Sequence[ObjectKey], error: BaseException) -> list[bool]:
        self._counts.warn("match", error)
        self._counts.request("failed")
        return [False] * len(keys)

    async def _loaded(self, key: ObjectKey, into: Tensor, left: Left) -> bool:
        tokens, came = 0, False
        try:
            async with in_turn(self._loading, left):
                page = await self._page(key, into.shape, into.dtype)
                tokens = page.shape.tokens
                came = await self._filled(page, page.elements(into), left)
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine computes
            self._counts.warn("load", error)
        self._counts.tokens("loaded" if came else "lost", tokens)
        return came

    async def _filled(self, page: Page, into: Tensor, left: Left) -> bool:
        layout, shape, client = self._pages.layout, page.shape, self._client
        coding = await self._coding(page)
        # All of its tokens are wanted: what an engine computes anew is LMCache's to say.
        spec, seconds = await client.spec_to_load(
            coding,
            page.spec,
            page.token_ids,
            recent_tokens=1,
            inputs=page.inputs,
            timeout=left(),
        )
        left()
        room = layout.room(into, shape)
        loaded = await client.load(
            spec,
            page.token_ids,
            lambda pages: _view(spec, room),
            inputs=page.inputs,
            pages=range(1),
            timeout=seconds,
        )
        while loaded.unfinished is not None and not loaded.unfinished.is_set():
            await asyncio.sleep(_LOOK_S)  # a thread may still write into the object
        if loaded.reason is not None:
            self._counts.warn("load", loaded.reason)
        if not loaded.pages:
            return False
        if not layout.in_place:
            await _at_object(layout.put, room, into, shape)
        return True

    async def _stored(self, key: ObjectKey, tensor: Tensor, left: Left) -> int | None:
        """Bytes that it takes, 0 where it was there; None where it is not there."""
        failed: BaseException
        try:
            async with in_turn(self._storing, left):
                page = await self._page(key, tensor.shape, tensor.dtype)
                return await self._sent(page, page.elements(tensor), left)
        except Exception as error:  # noqa: BLE001 - no request depends on it
            failed = error
        except asyncio.CancelledError:
            failed = Cancelled("LMCache ends")
        self._counts.pages("failed", 1)
        self._counts.warn("store", failed)
        return None

    async def _sent(self, page: Page, tensor: Tensor, left: Left) -> int:
        layout, coding = self._pages.layout, await self._coding(page)
        spec = coding.spec(page.spec)
        left()  # the model's files may have been read since
        if layout.in_place:
            memory = layout.pages(tensor, page.shape)
        else:
            memory = await _at_object(layout.pages, tensor, page.shape)

        async def send() -> int:
            report = await self._client.offload(
                spec,
                page.token_ids,
                _view(spec, memory),
                inputs=page.inputs,
                timeout=left(),
            )
            sent = report.pages[0] in _UNDER_WAY
            self._counts.pages("sent" if sent else "present", 1)
            return report.bytes_stored

        try:
            return await send()
        except UnknownDictionary:
            if coding.dictionary is None:
                raise
        await self._client.register_dictionary(coding.dictionary)
        return await send()

    async def _present(self, spec: CacheSpec, pages: Sequence[Page]) -> list[Codec | None]:
        """What each page of one spec is coded with, now or as before a set came; None for those
        that are not stored."""
        coding = await self._coding(pages[0])
        found = await self._asked(coding.spec(spec), pages)
        former = coding.former(spec)
        missing = [place for place, codec in enumerate(found) if codec is None]
        if former is not None and missing:
            before = await self._asked(former, [pages[place] for place in missing])
            for place, codec in zip(missing, before, strict=True):
                found[place] = codec
        return found

    async def _asked(self, spec: CacheSpec, pages: Sequence[Page]) -> list[Codec | None]:
        ids = np.zeros(len(pages) * spec.page_tokens, dtype="<u4")
        inputs = PageInputs.of((page.inputs[0] for page in pages), (), spec.page_tokens)
        found = await self._client.match(spec, ids, inputs=inputs, apart=True)
        return [spec.codec if there else None for there in found.present]

    async def _page(self, key: ObjectKey, shape: Sequence[int], dtype: torch.dtype) -> Page:
        if not self._pages.knows(key.model_name):  # its files are to be hashed, perhaps
            await asyncio.to_thread(self._pages.model, key.model_name)
        return self._pages.page(key, shape, dtype)

    async def _coding(self, page: Page) -> Coding:
        """What pages of this shape are coded with.

        Raises:
            Unsupported: a rank's part of a model, and a codec that has a set.
            LexicoError: the codec, or the set that was given, does not serve; or there is none,
                and pages shall not be lossless.
        """
        settings, base = self._settings, replace(page.spec, salt=b"")
        async with self._learning:
            if base not in self._codings:
                if page.is_slice and settings.codec != base.codec.name:
                    raise Unsupported(
                        f"codec {settings.codec}: LMCache stores each rank's part of a model by "
                        "itself, and sets are of whole models; give codec lossless"
                    )
                self._codings[base] = await self._client.coding(
                    base,
                    settings.codec,
                    codec_config=settings.codec_config,
                    dictionary=self._given,
                    without_set=checked_without_set(settings.without_set),
                    known_positions=False,
                    model=page.folder,
                )
            return self._codings[base]


def _set_given(settings: AdapterConfig) -> DictionarySet | bytes | None:
    """
    Raises:
        ConfigurationError: naming the setting.
    """
    try:
        return settings.dictionary_given()
    except ConfigurationError:
        raise
    except LexicoError as error:
        raise ConfigurationError(f"{settings.where}: dictionary: {error.message}") from error


async def _at_object(work: Callable[..., T], *args: Any) -> T:
    """Work in a thread at the memory of an object.

    Raises:
        Cancelled: the object may be another by now.
    """
    access = Access.of_call()

    def within() -> T:
        with access.using() as allowed:
            if not allowed:
                raise Cancelled("the call has ended, and the object may be another by now")
            return work(*args)

    return await asyncio.to_thread(within)


def _layout_of(layouts: Layouts, key: ObjectKey) -> tuple[Sequence[int], torch.dtype]:
    """
    Raises:
        Unsupported: LMCache told none for the object's group.
    """
    if key.object_group_id not in layouts:
        raise Unsupported(f"objects of group {key.object_group_id} have no layout, or several")
    return layouts[key.object_group_id]


def _by_spec(pages: Sequence[Page]) -> dict[CacheSpec, list[int]]:
    """Places of the pages of each spec."""
    found: dict[CacheSpec, list[int]] = {}
    for place, page in enumerate(pages):
        found.setdefault(page.spec, []).append(place)
    return found


def _view(spec: CacheSpec, memory: Tensor) -> Callable[[int, int], Tensor]:
    """The one page, `[layers, 2, tokens, kv_heads, head_dim]`, by its layer groups."""

    def view(page: int, group: int) -> Tensor:
        layers = spec.group_range(group)
        return memory[layers.start : layers.stop]

    return view
