"""Frames off the wire and into the caller's memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import torch
from torch import Tensor

from lexico_client._crew import Shift
from lexico_client._deadline import Budget, may_retry, pause
from lexico_client._frames import Frame, FrameAssembler
from lexico_client._parts import parts
from lexico_client._transport import Transport
from lexico_codec.memory import CacheMemory
from lexico_codec.pages import checked_target, decode_group, read_group
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import (
    DamagedFrame,
    DeadlineExpired,
    InternalError,
    LexicoError,
    NewerFrame,
    Unavailable,
    Unsupported,
)
from lexico_proto.v1 import reload_pb2 as reload

if TYPE_CHECKING:
    from lexico_codec.codecs.sparse import GroupCodes

_log = logging.getLogger(__name__)


@runtime_checkable
class CodesReceiver(Protocol):
    """Takes one layer group of one page as codes, where a caller wants no dense tensor."""

    @property
    def device(self) -> torch.device:
        """Where the codes are to lie."""

    def accept(self, codes: GroupCodes) -> None:
        """Keeps the codes, which are its own from now on. Called in a worker thread, at most once,
        and only once the group's frame has proved sound."""


PageView = Callable[[int, int], Tensor | CacheMemory | CodesReceiver]
"""`(page, group)` → where that group goes: a tensor to fill, `spec.group_shape(group)`, any
strides, any device; the memory of the layers and KV heads that are wanted of it, paged or not; or,
for a codec that has codes, what takes them as they are."""
Target = Callable[[int], PageView]
"""`(pages)` → the views of that many pages; allocates, if the caller wants to."""

_TRAILER_SECONDS: Final = 0.25
"""How long the end of a stream is waited for once all of its frames are there."""
SETTLE_SECONDS: Final = 0.05
"""What decoding a frame that came in time may take beyond the deadline. One layer group takes
milliseconds: its page counts then, and no thread is left behind."""


class PrefixLoader:
    """Loads as many leading pages as come whole and sound.

    One Get after another brings as many pages as a call takes. Its frames come group by group and
    are decoded in a worker thread, one at a time, while the next is received. The first bad page
    ends the prefix; pages before it go on. Nothing here outlives `run`: when it returns or raises,
    no thread writes to the caller's memory any more, and none gives codes to a receiver. A thread
    that is at it past the deadline is the exception, see `Loaded.unfinished`.
    """

    def __init__(
        self,
        spec: CacheSpec,
        page_keys: Sequence[bytes],
        view: PageView,
        dictionary: DictionarySet | None,
        shift: Shift,
        idle: float,
        first_page: int = 0,
    ) -> None:
        """
        Args:
            spec: what the pages belong to.
            page_keys: of consecutive pages.
            view: where they go.
            dictionary: the set that the spec names.
            shift: writes to the caller's memory.
            idle: seconds between two messages.
            first_page: index of the first of them in its sequence.
        """
        self.reason: LexicoError | None = None
        self.bytes_received = 0
        self.decode_seconds = 0.0
        self._spec = spec
        self._keys = page_keys
        self._view = view
        self._dictionary = dictionary
        self._shift = shift
        self._idle = idle
        self._first_page = first_page
        self._wanted = len(page_keys)
        self._decoded = [0] * len(page_keys)  # leading groups of each page that are in place
        self._running: tuple[Frame, asyncio.Future[_Decoded]] | None = None
        self._caller_error: Exception | None = None

    @property
    def pages(self) -> int:
        """Leading pages of which every group is in place."""
        for page, groups in enumerate(self._decoded[: self._wanted]):
            if groups < self._spec.groups:
                return page
        return self._wanted

    async def run(self, transport: Transport, budget: Budget) -> None:
        """Receives and decodes until the prefix is there or cannot grow; see `reason` then.

        Raises:
            ShapeMismatch, InvalidInput: a view of the caller's does not fit the spec.
            Exception: whatever else the caller's view raised.
        """
        try:
            async with budget.bound():
                for part in parts(self._wanted):
                    await self._part(transport, part, budget)
                    if self._wanted < part.stop:
                        break
        except LexicoError as error:
            self.reason = self.reason or error
        finally:
            await self._settle()
        if self._caller_error is not None:
            raise self._caller_error
        if self.pages == len(self._keys):
            self.reason = None

    async def _part(self, transport: Transport, part: range, budget: Budget) -> None:
        try:
            await self._attempt(transport, part, budget)
        except LexicoError as error:
            if not may_retry(error) or not await pause(budget):
                raise
            await self._attempt(transport, part, budget)

    async def _attempt(self, transport: Transport, part: range, budget: Budget) -> None:
        first, end = part.start, min(part.stop, self._wanted)
        if end <= first:
            return
        assembler = FrameAssembler(self._spec, end - first)
        request = reload.GetRequest(
            page_keys=self._keys[first:end],
            groups=self._spec.groups,
            namespace=self._spec.namespace,
            first_page=self._first_page + first,
        )
        async with aclosing(transport.get(request, budget.left())) as stream:
            while self._wanted > first and not assembler.complete:
                message = await self._next(stream)
                if message is None:
                    raise InternalError("get: the stream ended before its last frame")
                frame = assembler.accept(message)
                given = first + assembler.pages
                if given < min(end, self._wanted):
                    place = self._first_page + given
                    self._end(given, _missed(place, assembler.miss_reason))
                if frame is not None:
                    self.bytes_received += len(frame.data)
                    await self._settle()
                    self._start(replace(frame, page=first + frame.page))
            if assembler.complete:
                await _end_of(stream)
        await self._settle()

    async def _next(
        self, stream: AsyncGenerator[reload.GetResponse, None]
    ) -> reload.GetResponse | None:
        try:
            async with asyncio.timeout(self._idle):
                return await anext(stream, None)
        except TimeoutError as error:
            raise DeadlineExpired(f"get: nothing came for {self._idle:g} s") from error

    def _end(self, page: int, reason: LexicoError) -> None:
        """The prefix ends before `page`."""
        if page < self._wanted:
            self._wanted, self.reason = page, reason

    def _start(self, frame: Frame) -> None:
        if frame.page < self._wanted and frame.group == self._decoded[frame.page]:
            self._running = frame, self._shift.start(self._decode, frame)

    async def _settle(self) -> None:
        """Waits for the frame that is being decoded, and takes note of how it went."""
        if self._running is None:
            return
        (frame, future), self._running = self._running, None
        try:
            await self._shift.finished(future, SETTLE_SECONDS)
        finally:
            decoded = _late() if future.cancelled() or not future.done() else future.result()
            self.decode_seconds += decoded.seconds
            if decoded.caller_error is not None:
                self._caller_error, self._wanted = decoded.caller_error, 0
            elif decoded.error is not None:
                self._end(frame.page, decoded.error)
            else:
                self._decoded[frame.page] = frame.group + 1

    def _decode(self, frame: Frame) -> _Decoded:
        """In the worker thread; never raises."""
        with self._shift.access.using() as allowed:
            return self._decode_now(frame) if allowed else _late()

    def _decode_now(self, frame: Frame) -> _Decoded:
        started = time.perf_counter()
        page, group, error = self._first_page + frame.page, frame.group, None
        try:
            out = self._checked_view(page, group)
            device = out.device
        except Exception as own:  # noqa: BLE001 - the caller's, whatever it is: `run` raises it
            return _Decoded(0.0, None, own)
        codes: GroupCodes | None = None
        try:
            if isinstance(out, CodesReceiver):
                codes = self._read(frame, page, device)
            else:
                self._fill(frame, page, out)
        except LexicoError as refused:
            error = refused
            if isinstance(refused, NewerFrame):
                _log.warning("newer page=%d group=%d: left alone, upgrade to read", page, group)
        except Exception as defect:  # noqa: BLE001 - whatever a frame does to a codec is a miss
            _log.exception("decode failed page=%d group=%d", page, group)
            error = InternalError(f"page {page} group {group} could not be decoded")
            error.__cause__ = defect
        seconds = time.perf_counter() - started
        if codes is not None and isinstance(out, CodesReceiver):
            if self._shift.access.over:
                return _late()
            try:
                out.accept(codes)
            except Exception as own:  # noqa: BLE001 - the caller's again
                return _Decoded(seconds, None, own)
        return _Decoded(seconds, error, None)

    def _fill(self, frame: Frame, page: int, out: CacheMemory) -> None:
        key, dictionary = self._keys[frame.page], self._dictionary
        # Engines allocate under inference_mode, and such tensors may be written only under it.
        with torch.inference_mode(out.is_inference()):
            decode_group(self._spec, key, page, frame.group, frame.data, out, dictionary)
            _synchronise(out.device)

    def _read(self, frame: Frame, page: int, device: torch.device) -> GroupCodes:
        key, dictionary = self._keys[frame.page], self._dictionary
        codes = read_group(self._spec, key, page, frame.group, frame.data, dictionary, device)
        _synchronise(device)
        return codes

    def _checked_view(self, page: int, group: int) -> CacheMemory | CodesReceiver:
        out = self._view(page, group)
        if isinstance(out, CodesReceiver):
            # Here and not above, as in `read_group`.
            from lexico_codec.codecs.sparse import keeps_codes

            if not keeps_codes(self._spec.codec):
                raise Unsupported(
                    f"codec {self._spec.codec.name} keeps no codes: give tensors to fill"
                )
            return out
        if not isinstance(out, Tensor | CacheMemory):
            raise TypeError(
                f"the view of page {page} group {group} is no torch.Tensor, no CacheMemory and "
                "takes no codes"
            )
        return checked_target(self._spec, group, out, f"the view of page {page} group {group}")


@dataclass(frozen=True)
class _Decoded:
    """How decoding one frame went."""

    seconds: float
    error: LexicoError | None
    """The frame cannot be used."""
    caller_error: Exception | None
    """The caller's view cannot."""


def _late() -> _Decoded:
    return _Decoded(0.0, DeadlineExpired("load: a page was not decoded within the deadline"), None)


def _missed(page: int, reason: reload.MissReason) -> LexicoError:
    """Why the service did not give a page that it had matched."""
    if reason == reload.MISS_REASON_DAMAGED:
        return DamagedFrame(f"page {page} was damaged in the store, and was removed from there")
    if reason == reload.MISS_REASON_NEWER:
        return NewerFrame(
            f"page {page} is of a newer release, which the reload server does not read: upgrade it"
        )
    return Unavailable(f"page {page} is no longer in the store, or not to be read there")


async def _end_of(stream: AsyncGenerator[reload.GetResponse, None]) -> None:
    """Lets the service end the call itself, so that it does not count as cancelled."""
    try:
        async with asyncio.timeout(_TRAILER_SECONDS):
            await anext(stream, None)
    except (TimeoutError, LexicoError) as error:
        _log.debug("every frame is there, but the stream did not end well: %s", error)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
