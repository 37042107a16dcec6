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
"""Share of calls that are given up half-way."""


class Node:
    """A node's client, and what it does with it."""

    def __init__(self, client: AsyncClient, seed: int) -> None:
        self._client = client
        self._random = random.Random(seed)

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
        landing, stop = Landing(spec), self._stop_after()

        def target(pages: int) -> PageView:
            view = landing(pages)

            def counted(page: int, group: int) -> Tensor:
                stop()
                return view(page, group)

            return counted

        async def call() -> dict[str, Any]:
            loaded = await self._client.load(spec, tokens, target, timeout=LOAD_S)
            wrong = wrong_pages(spec, tokens, landing.cache, loaded.pages)
            reason = None if loaded.reason is None else loaded.reason.reason
            return {"pages": loaded.pages, "wrong": wrong, "reason": reason}

        await self._told("load", LOAD_S, call)
        # Whoever gave the call up uses the memory for something else now.
        before = landing.cache.clone()
        await asyncio.sleep(self._random.random() / 20)
        if not torch.equal(before, landing.cache):  # NaN is never equal: see Landing
            tell("late", 0.0, 0.0, {})

    async def _offload(self, spec: CacheSpec, tokens: list[int]) -> None:
        keys, stop = page_keys(spec, tokens), self._stop_after()

        def source(page: int, group: int) -> Tensor:
            stop()
            layers = spec.group_range(group)
            return offered(spec, keys[page])[layers.start : layers.stop]

        async def call() -> dict[str, Any]:
            if spec.codec.needs_dictionary:
                await self._client.register_dictionary(DICTIONARY, timeout=OFFLOAD_S)
            report = await self._client.offload(spec, tokens, source, timeout=OFFLOAD_S)
            return {"pages": len(report.pages), "sent": report.bytes_sent}

        await self._told("offload", 2 * OFFLOAD_S, call)

    def _stop_after(self) -> Callable[[], None]:
        """What gives the running task up at some count of groups, or never."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        left = self._random.randint(1, 8) if self._random.random() < ABORTED else 0

        def stop() -> None:  # in a worker thread
            nonlocal left
            left -= 1
            if left == 0:
                loop.call_soon_threadsafe(task.cancel)

        return stop

    async def _told(
        self, what: str, deadline: float, call: Callable[[], Awaitable[dict[str, Any]]]
    ) -> None:
        started = time.monotonic()
        task = asyncio.current_task()
        assert task is not None
        try:
            outcome = await call()
        except LexicoError as error:
            outcome = {"reason": error.reason}
            if error.reason in ("internal", "configuration"):
                sys.stderr.write(f"{what}: {error!r}\n")
            await asyncio.sleep(0.2)  # a node that is refused prefills
        except asyncio.CancelledError:
            task.uncancel()
            outcome = {"reason": "given-up"}
        tell(what, time.monotonic() - started, deadline, outcome)


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
