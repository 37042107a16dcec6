"""One inference node: loads and offloads prompts until it is told to end.

python -m bench.endurance.node RELOAD OFFLOAD SETS SEED, one line of JSON on stdout for each call.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from bench.endurance.oracle import (
    CODECS,
    CONVERSATIONS,
    DICTIONARY,
    MOST_PAGES,
    PAGE_TOKENS,
    Conversation,
    offered,
    spec_of,
    wrong_pages,
)
from lexico_client import AsyncClient, PageView, Timeouts
from lexico_codec.keys import page_keys
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import LexicoError

LOAD_S: Final = 10.0
OFFLOAD_S: Final = 20.0
ABORTED: Final = 1 / 3
"""Share of calls of each kind that are given up half-way."""
MISS_S: Final = 0.1
"""What a node does after a miss or a refusal: it prefills."""


class Node:
    """A node's client, and what it does with it."""

    def __init__(self, client: AsyncClient, seed: int) -> None:
        self._client = client
        self._random = random.Random(seed)
        self._calls = {"load": Calls(), "offload": Calls()}

    async def step(self) -> None:
        """One turn of one conversation: a load, and perhaps an offload."""
        spec = spec_of(self._random.choice(CODECS))
        number = min(self._random.randrange(CONVERSATIONS) for _ in range(2))
        pages = self._random.randint(1, MOST_PAGES)
        tokens = Conversation(spec, number).tokens(pages)
        await self._load(spec, tokens)
        if self._random.random() < 0.7:
            await self._offload(spec, tokens)

    async def _load(self, spec: CacheSpec, tokens: list[int]) -> None:
        landing = Landing(spec)
        giving_up = self._giving_up("load")

        def target(pages: int) -> PageView:
            view = landing(pages)
            giving_up.moves(pages * spec.groups)

            def counted(page: int, group: int) -> Tensor:
                giving_up.moved()
                return view(page, group)

            return counted

        async def call() -> dict[str, Any]:
            loaded = await self._client.load(spec, tokens, target, timeout=LOAD_S)
            giving_up.over()
            wrong = wrong_pages(spec, tokens, landing.cache, loaded.pages)
            reason = None if loaded.reason is None else loaded.reason.reason
            return {"pages": loaded.pages, "wrong": wrong, "reason": reason}

        outcome = await self._told("load", LOAD_S, call, giving_up)
        # Whoever gave the call up uses the memory for something else now.
        before = landing.cache.clone()
        await asyncio.sleep(self._random.random() / 20 if outcome.get("pages") else MISS_S)
        if not torch.equal(before, landing.cache):  # NaN is never equal: see Landing
            tell("late", 0.0, 0.0, {})

    async def _offload(self, spec: CacheSpec, tokens: list[int]) -> None:
        keys = page_keys(spec, tokens)
        giving_up = self._giving_up("offload")
        giving_up.moves(len(keys) * spec.groups)

        def source(page: int, group: int) -> Tensor:
            giving_up.moved()
            layers = spec.group_range(group)
            return offered(spec, keys[page])[layers.start : layers.stop]

        async def call() -> dict[str, Any]:
            if spec.codec.needs_dictionary:
                await self._client.register_dictionary(DICTIONARY, timeout=OFFLOAD_S)
            report = await self._client.offload(spec, tokens, source, timeout=OFFLOAD_S)
            giving_up.over()
            return {"pages": len(report.pages), "sent": report.bytes_sent}

        outcome = await self._told("offload", 2 * OFFLOAD_S, call, giving_up)
        if "pages" not in outcome:
            await asyncio.sleep(MISS_S)

    def _giving_up(self, what: str) -> GivingUp:
        """Whether the next call is given up, and where. Calls may be over before that, so whoever
        is behind the share tries with the next."""
        calls = self._calls[what]
        behind = calls.given_up <= ABORTED * calls.made
        giving_up = GivingUp()
        if self._random.random() < (0.9 if behind else 0.1):
            giving_up.at(self._random.random(), calls.seconds)
        return giving_up

    async def _told(
        self,
        what: str,
        deadline: float,
        call: Callable[[], Awaitable[dict[str, Any]]],
        giving_up: GivingUp,
    ) -> dict[str, Any]:
        started = time.monotonic()
        task = asyncio.current_task()
        assert task is not None
        try:
            outcome = await call()
        except LexicoError as error:
            outcome = {"reason": error.reason}
            if error.reason in ("internal", "configuration"):
                sys.stderr.write(f"{what}: {error!r}\n")
        except asyncio.CancelledError:
            task.uncancel()
            outcome = {"reason": "given-up", "moved": giving_up.count}
        giving_up.over()
        seconds = time.monotonic() - started
        self._calls[what].add(seconds, outcome.get("reason"))
        tell(what, seconds, deadline, outcome)
        return outcome


@dataclass
class Calls:
    """A node's calls of one kind."""

    made: int = 0
    given_up: int = 0
    seconds: float = 0.1
    """What the last took that was not given up."""

    def add(self, seconds: float, reason: str | None) -> None:
        """One more."""
        self.made += 1
        if reason == "given-up":
            self.given_up += 1
        else:
            self.seconds = seconds


class GivingUp:
    """Cancels the running task in the middle of a call: at a group that it moves, or at a time,
    whichever comes first. One that nobody told `at` never does."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._share: float | None = None
        self._last = 0
        self._timer: asyncio.TimerHandle | None = None
        self._over = False
        self.count = 0
        """Groups moved so far."""

    def at(self, share: float, seconds: float) -> None:
        """Gives up after that share of a call that takes so many seconds."""
        self._share = share
        self._timer = self._loop.call_later(share * seconds, self._cancel)

    def moves(self, groups: int) -> None:
        """It will move as many at most."""
        if self._share is not None:
            self._last = 1 + int(self._share * groups)

    def moved(self) -> None:
        """A group is about to be moved, in a worker thread."""
        self.count += 1
        if self.count == self._last:
            self._loop.call_soon_threadsafe(self._cancel)

    def over(self) -> None:
        """The call has its outcome: it is too late."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()

    def _cancel(self) -> None:
        if not self._over:
            self._over = True
            self._task.cancel()


class Landing:
    """Memory that a load writes to: a number that no page holds until then."""

    def __init__(self, spec: CacheSpec) -> None:
        self._spec = spec
        self.cache = torch.empty(0)

    def __call__(self, pages: int) -> Callable[[int, int], Tensor]:
        g = self._spec.geometry
        shape = (g.layers, 2, pages * PAGE_TOKENS, g.kv_heads, g.head_dim)
        self.cache = torch.full(shape, 1234.0, dtype=g.torch_dtype)

        def view(page: int, group: int) -> Tensor:
            layers, first = self._spec.group_range(group), page * PAGE_TOKENS
            return self.cache[layers.start : layers.stop, :, first : first + PAGE_TOKENS]

        return view


def tell(what: str, seconds: float, deadline: float, outcome: dict[str, Any]) -> None:
    """One line of the record."""
    line = {"what": what, "seconds": round(seconds, 4), "deadline": deadline, **outcome}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def run(reload: str, offload: str, sets: str, seed: int) -> None:
    """Works until SIGTERM; the call under way ends first."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    timeouts = Timeouts(match=2.0, load=LOAD_S, offload=OFFLOAD_S)
    client = AsyncClient(reload=reload, offload=offload, dictionaries_dir=sets, timeouts=timeouts)
    async with client:
        node = Node(client, seed)
        while not ended.is_set():
            await node.step()


if __name__ == "__main__":
    torch.set_num_threads(1)
    asyncio.run(run(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
