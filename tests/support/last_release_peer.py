"""Runs over the tree of the last release: both servers and a client, by lines of JSON.

Every import below is of that tree, or of a library; so is what it calls. See `last_release.py`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from lexico_client import AsyncClient, Timeouts
from lexico_codec.dictionary import DictionarySet
from lexico_codec.geometry import Geometry
from lexico_codec.spec import CacheSpec, make_spec
from lexico_store import open_store
from tests.support.services import Services, running_services

LONG = Timeouts(match=300, load=300, idle=300, offload=300, dictionaries=300)


class Calls:
    """What may be asked."""

    def __init__(self, services: Services, folder: Path) -> None:
        self._services = services
        self._folder = folder

    async def addresses(self) -> list[str]:
        return [self._services.reload_address, self._services.offload_address]

    async def offload(
        self, addresses: list[str], spec: dict[str, Any], tokens: list[int], cache: str
    ) -> list[str]:
        """Sends the cache in a file; the outcome of each page."""
        made, held = spec_of(spec), torch.load(cache)
        async with self._client(addresses) as client:
            report = await client.offload(made, tokens, views_of(made, held))
        return [str(outcome) for outcome in report.pages]

    async def load(
        self, addresses: list[str], spec: dict[str, Any], tokens: list[int], out: str
    ) -> list[Any]:
        """Loads into a file; how many pages came, and why not more."""
        made, shape = spec_of(spec), spec["shape"]
        cache = torch.full(shape, float("nan"), dtype=getattr(torch, made.geometry.dtype))
        async with self._client(addresses) as client:
            loaded = await client.load(made, tokens, lambda pages: views_of(made, cache))
        torch.save(cache, out)
        return [loaded.pages, None if loaded.reason is None else type(loaded.reason).__name__]

    async def set_digest(self, path: str) -> str:
        """Of a dictionary set in a file, read."""
        return DictionarySet.load(Path(path).read_bytes()).digest.hex()

    async def register(self, addresses: list[str], path: str) -> bool:
        """Registers a set."""
        async with self._client(addresses) as client:
            return await client.register_dictionary(DictionarySet.load(Path(path).read_bytes()))

    async def namespace(self, spec: dict[str, Any]) -> str:
        """Of a spec."""
        return spec_of(spec).namespace.hex()

    def _client(self, addresses: list[str]) -> AsyncClient:
        reload, offload = addresses
        return AsyncClient(
            reload=reload, offload=offload, dictionaries_dir=self._folder, timeouts=LONG
        )


def spec_of(plain: dict[str, Any]) -> CacheSpec:
    """A spec from plain values."""
    return make_spec(
        weights=bytes.fromhex(plain["weights"]),
        geometry=Geometry(*plain["geometry"]),
        codec=plain["codec"],
        codec_config=plain["config"],
        dictionary=bytes.fromhex(plain["dictionary"]),
        page_tokens=plain["page_tokens"],
        group_layers=plain["group_layers"],
    )


def views_of(spec: CacheSpec, cache: torch.Tensor) -> Any:
    """The groups of a cache, as views."""

    def view(page: int, group: int) -> torch.Tensor:
        layers, first = spec.group_range(group), page * spec.page_tokens
        return cache[layers.start : layers.stop, :, first : first + spec.page_tokens]

    return view


async def answer(calls: Calls, line: str) -> dict[str, Any]:
    """One answer."""
    call, arguments = json.loads(line)
    try:
        return {"result": await getattr(calls, call)(**arguments)}
    except Exception:  # noqa: BLE001 - whatever it is, the test shows it
        return {"error": traceback.format_exc()}


async def serve(store_url: str, folder: Path) -> None:
    """Answers until there is nothing more to read."""
    with open_store(store_url) as store:
        async with running_services(store) as services:
            calls = Calls(services, folder)
            loop = asyncio.get_running_loop()
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                sys.stdout.write(json.dumps(await answer(calls, line)) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
