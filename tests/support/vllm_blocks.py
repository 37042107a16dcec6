"""The blocks of an engine, and what it believes of them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Final, cast

import torch

from lexico_client.engines.vllm._paged import PagedCache
from lexico_codec.spec import CacheSpec
from tests.support.vllm_caches import EngineCache, cpu
from tests.support.vllm_fakes import GEOMETRY
from tests.support.vllm_truth import Truth

BLOCK_TOKENS: Final = 4


@dataclass
class Request:
    """A request of the engine."""

    request: SimpleNamespace
    to_generate: int
    state: str = "waiting"
    """waiting, remote, running, aborted."""
    computed: int = 0
    generated: int = 0
    blocks: list[int] = field(default_factory=list)
    preempted: bool = False
    """Whether it runs again once it runs."""
    arrived: bool = False
    failed: bool = False
    holds: bool = False
    """Whether it keeps its blocks though it does not run: its load has ended."""

    @property
    def ids(self) -> list[int]:
        return cast("list[int]", self.request.all_token_ids)

    @property
    def model(self) -> Hashable:
        return self.request.lora_request

    @property
    def apart(self) -> Hashable:
        """What an engine's own prefix cache keeps apart by."""
        return (self.request.lora_request, self.request.cache_salt)


class Blocks:
    """Memory in blocks, which requests share where they begin alike."""

    def __init__(self, truth: Truth, spec: CacheSpec, blocks: int) -> None:
        self.truth, self.spec = truth, spec
        self.weights = 0
        """How often they were changed."""
        g = GEOMETRY
        self.layers: list[EngineCache] = [
            cpu(blocks, BLOCK_TOKENS, g.kv_heads, g.head_dim, g.torch_dtype)
            for _ in range(g.layers)
        ]
        named = [(f"layers.{n}", each.tensor, each.write) for n, each in enumerate(self.layers)]
        self.cache, _ = PagedCache.over(named, spec, BLOCK_TOKENS)
        self.free = list(range(blocks))
        """Least recently freed first; what they hold may be in `cached`."""
        self.users = [0] * blocks
        self.cached: dict[Hashable, int] = {}
        """What keeps requests apart, and all tokens up to a block's end → the block."""

    def _local(self, request: Request) -> list[int]:
        found: list[int] = []
        last = (len(request.ids) - 1) // BLOCK_TOKENS
        for place in range(last):
            block = self.cached.get(self._name(request, (place + 1) * BLOCK_TOKENS))
            if block is None:
                break
            found.append(block)
        return found

    def _name(self, request: Request, stop: int) -> Hashable:
        return (request.apart, tuple(request.ids[:stop]))

    def _use(self, block: int) -> None:
        if not self.users[block]:
            self.free.remove(block)
        self.users[block] += 1

    def _take(self, request: Request, count: int) -> list[int]:
        more = [self.free.pop(0) for _ in range(max(0, count))]
        for block in more:
            self.users[block] = 1
            self.cached = {name: each for name, each in self.cached.items() if each != block}
            for layer in self.layers:  # what was there is no one's any more
                layer.tensor[block] = float("nan")
        request.blocks += more
        return more

    def _release(self, request: Request) -> None:
        for block in reversed(request.blocks):
            self.users[block] -= 1
            if not self.users[block]:
                self.free.append(block)
        request.blocks = []

    def _keep(self, request: Request, computed: int) -> None:
        """Full blocks are found by others from now on."""
        for place in range(computed // BLOCK_TOKENS):
            name = self._name(request, (place + 1) * BLOCK_TOKENS)
            self.cached.setdefault(name, request.blocks[place])

    def _write(self, request: Request, first: int, count: int) -> None:
        values = self.truth.of((self.weights, request.model), request.ids, first, first + count)
        at = torch.arange(first, first + count)
        slots = torch.tensor(request.blocks)[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS
        for number, layer in enumerate(self.layers):
            layer.write(values[number, 0], values[number, 1], slots)

    def _check(self, request: Request, computed: int) -> None:
        wanted = self.truth.of((self.weights, request.model), request.ids, 0, computed)
        here = self.cache.copied(request.blocks, 0, computed)
        assert torch.equal(here, wanted), f"{request.request.request_id}: wrong keys and values"
