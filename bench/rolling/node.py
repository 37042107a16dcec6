"""One inference node: offloads new prompts and loads what it was told is stored.

python -m bench.rolling.node RELOAD OFFLOAD SETS SEED, one line of JSON on stdout for each call.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from bench.endurance.node import Landing
from bench.endurance.oracle import CODECS, DICTIONARY, Conversation, offered, spec_of, wrong_pages
from lexico_client import AsyncClient
from lexico_codec.keys import page_keys
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import LexicoError
from lexico_proto.metrics import CLIENT_RETRIES, Metrics

MOST_PAGES: Final = 12
KEPT: Final = 50
"""Prompts that a node goes on asking for."""
START_S: Final = 120.0
"""For the first call, to a service that has just started on a busy machine."""


@dataclass(frozen=True)
class Stored:
    """A prompt whose pages were all acknowledged."""

    spec: CacheSpec
    tokens: list[int]
    pages: int


class Node:
    """A client with the time limits that nodes have by default."""

    def __init__(self, client: AsyncClient, metrics: Metrics, seed: int) -> None:
        self._client = client
        self._metrics = metrics
        self._random = random.Random(seed)
        self._number = seed * 1_000_000
        self._stored: list[Stored] = []

    async def step(self) -> None:
        """An offload of a new prompt, and two loads of prompts that are stored."""
        await self._offload()
        for _ in range(2):
            if self._stored:
                await self._load(self._random.choice(self._stored))

    async def _offload(self) -> None:
        self._number += 10  # a conversation of the oracle shares no page with one of other tens
        spec = spec_of(self._random.choice(CODECS))
        pages = self._random.randint(1, MOST_PAGES)
        tokens = Conversation(spec, self._number).tokens(pages)
        keys = page_keys(spec, tokens)

        def source(page: int, group: int) -> Tensor:
            layers = spec.group_range(group)
            return offered(spec, keys[page])[layers.start : layers.stop]

        async def call() -> dict[str, Any]:
            report = await self._client.offload(spec, tokens, source)
            return {"asked": pages, "pages": len(report.pages), "sent": report.bytes_sent}

        if (await self._told("offload", call)).get("pages") == pages:
            self._stored = [*self._stored[-KEPT + 1 :], Stored(spec, tokens, pages)]

    async def _load(self, stored: Stored) -> None:
        landing = Landing(stored.spec)

        async def call() -> dict[str, Any]:
            loaded = await self._client.load(stored.spec, stored.tokens, landing)
            reason = None if loaded.reason is None else loaded.reason.reason
            return {"asked": stored.pages, "pages": loaded.pages, "reason": reason}

        def wrong(outcome: dict[str, Any]) -> dict[str, Any]:
            got = outcome.get("pages", 0)
            return {"wrong": len(wrong_pages(stored.spec, stored.tokens, landing.cache, got))}

        await self._told("load", call, wrong)

    async def _told(self, what: str, call: Any, after: Any = None) -> dict[str, Any]:
        before, began, clock = self._retries(), time.time(), time.perf_counter()
        try:
            outcome: dict[str, Any] = await call()
        except LexicoError as error:
            outcome = {"reason": error.reason, "said": error.message[:200]}
        seconds = time.perf_counter() - clock
        if after is not None:
            outcome |= after(outcome)
        line = {"what": what, "at": began, "seconds": round(seconds, 4)}
        line |= {"retries": self._retries() - before, **outcome}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        return outcome

    def _retries(self) -> int:
        return int(sum(self._metrics.snapshot().get(CLIENT_RETRIES, {}).values()))


async def run(reload: str, offload: str, sets: str, seed: int) -> None:
    """Works until SIGTERM; the step under way ends first."""
    ended, metrics = asyncio.Event(), Metrics()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    client = AsyncClient(reload=reload, offload=offload, dictionaries_dir=sets, metrics=metrics)
    async with client:
        await client.register_dictionary(DICTIONARY, timeout=START_S)
        node = Node(client, metrics, seed)
        while not ended.is_set():
            await node.step()


if __name__ == "__main__":
    torch.set_num_threads(1)
    asyncio.run(run(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
