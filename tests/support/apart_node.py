"""A node on a host of its own: takes lines of JSON, makes the calls, and answers each line.

A line is a list of calls, which are made at the same time:

    {"do": "offload" | "load", "seed": N, "pages": N, "by": CLIENT, "codec": "lossless"}

CLIENT has `reload` and `offload`, each an address and files of `Tls`, and `timeouts`.
A call "health" asks the address `by` without TLS. NAMES in the environment has names that stand for
several addresses; this host has a name server for them.

A prompt and its cache come from its seed, so every node knows what a load must give.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

import torch

from lexico_client import AsyncClient, Endpoint, Timeouts, Tls
from lexico_codec.geometry import Geometry
from lexico_codec.spec import CacheSpec, make_spec
from lexico_proto.errors import LexicoError
from tests.support.client_fixtures import Landing, first_pages, random_cache, views_of
from tests.support.health import health_of
from tests.support.names import Names, name_server
from tests.support.waiting import PATIENCE_S

GEOMETRY = Geometry(layers=7, kv_heads=3, head_dim=64, dtype="float16")
PAGE_TOKENS = 63


def spec_of(codec: str) -> CacheSpec:
    """Pages of 330 KiB in four groups."""
    return make_spec(
        weights=bytes(range(32)),
        geometry=GEOMETRY,
        codec=codec,
        page_tokens=PAGE_TOKENS,
        group_layers=2,
    )


def tokens_of(seed: int, pages: int) -> list[int]:
    """Of a prompt that no other seed has a page of."""
    return [1000 * seed + place for place in range(pages * PAGE_TOKENS)]


class Node:
    """Clients by what they were asked to be."""

    def __init__(self, names: Names) -> None:
        self._known = json.loads(os.environ["NAMES"])
        self._names = names
        for name, addresses in self._known.items():
            names.set(name, addresses)
        self._clients: dict[str, AsyncClient] = {}

    async def answer(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of every call."""
        return await asyncio.gather(*(self._call(**call) for call in calls))

    async def close(self) -> None:
        """Ends the clients."""
        for client in self._clients.values():
            await client.close()

    async def _call(self, do: str, by: Any, **call: Any) -> dict[str, Any]:
        began = time.monotonic()
        try:
            if do == "health":
                told = {"health": await asyncio.to_thread(health_of, by, "ready")}
            else:
                told = await self._share(do, self._client(by), **call)
        except LexicoError as error:
            told = {"error": error.reason, "message": error.message}
        return {"seconds": time.monotonic() - began, **told}

    async def _share(
        self, do: str, client: AsyncClient, seed: int, pages: int, codec: str = "lossless"
    ) -> dict[str, Any]:
        call = self._load if do == "load" else self._offload
        return await call(client, spec_of(codec), seed, pages)

    async def _offload(
        self, client: AsyncClient, spec: CacheSpec, seed: int, pages: int
    ) -> dict[str, Any]:
        cache = random_cache(spec, pages, seed)
        report = await client.offload(spec, tokens_of(seed, pages), views_of(spec, cache))
        return {"pages": [str(outcome) for outcome in report.pages]}

    async def _load(
        self, client: AsyncClient, spec: CacheSpec, seed: int, pages: int
    ) -> dict[str, Any]:
        landing = Landing(spec)
        loaded = await client.load(spec, tokens_of(seed, pages), landing)
        right = first_pages(random_cache(spec, pages, seed), spec, loaded.pages)
        found = first_pages(landing.cache, spec, loaded.pages) if loaded.pages else right
        return {
            "pages": loaded.pages,
            "equal": torch.equal(found, right),
            "reason": None if loaded.reason is None else loaded.reason.reason,
            "message": None if loaded.reason is None else loaded.reason.message,
        }

    def _client(self, by: dict[str, Any]) -> AsyncClient:
        name = json.dumps(by, sort_keys=True)
        if name not in self._clients:
            patient = dict.fromkeys(("match", "load", "idle", "offload"), PATIENCE_S)
            self._clients[name] = AsyncClient(
                reload=self._endpoint(**by["reload"]),
                offload=self._endpoint(**by["offload"]),
                timeouts=Timeouts(**{**patient, **by["timeouts"]}),
            )
        return self._clients[name]

    def _endpoint(self, address: str, tls: dict[str, str]) -> Endpoint:
        host, _, port = address.partition(":")
        if host in self._known:
            address = self._names.target(host, int(port))
        return Endpoint(address, security=Tls(**tls))


async def serve() -> None:
    """Until standard input ends."""
    with name_server() as names:
        node = Node(names)
        try:
            while line := await asyncio.to_thread(sys.stdin.readline):
                sys.stdout.write(json.dumps(await node.answer(json.loads(line))) + "\n")
                sys.stdout.flush()
        finally:
            await node.close()


if __name__ == "__main__":
    asyncio.run(serve())
