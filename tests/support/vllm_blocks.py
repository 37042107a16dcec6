"""What vLLM's scheduler believes of an engine's blocks, and what the ranks have in them."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final, cast

import torch

from lexico_client.engines._counts import Counts
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm._orders import Orders
from lexico_client.engines.vllm._paged import PagedCache
from lexico_client.engines.vllm._ranks import rank_of
from lexico_client.engines.vllm._worker import WorkerSide
from lexico_codec.slices import Slice
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import Metrics
from tests.support.vllm_caches import EngineCache, cpu
from tests.support.vllm_loops import Stepped
from tests.support.vllm_ranks import rank_caches, rank_config
from tests.support.vllm_store import Client, Store

BLOCK_TOKENS: Final = 4
LOAD_S: Final = 3600.0


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

    def __init__(self, blocks: int) -> None:
        self.weights: Hashable = 0
        """How often they were changed."""
        self.free = list(range(blocks))
        """Least recently freed first; what they hold may be in `cached`."""
        self.users = [0] * blocks
        self.cached: dict[Hashable, int] = {}
        """What keeps requests apart, and all tokens up to a block's end → the block."""
        self.fresh: list[int] = []
        """Blocks that were taken for the next step."""

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
        if more:
            self.cached = {name: each for name, each in self.cached.items() if each not in more}
        self.fresh += more
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


@dataclass(frozen=True)
class Run:
    """Tokens of a request that a step computes."""

    model: Hashable
    ids: Sequence[int]
    blocks: Sequence[int]
    computed: int
    """Those that are there."""
    count: int


@dataclass(eq=False)
class Step:
    """What every rank is to do."""

    orders: Orders
    runs: list[tuple[Request, Run]]
    fresh: list[int]
    finished: set[str]
    computation: int
    told: list[tuple[set[str], set[int]]] = field(default_factory=list)
    """What ranks have told of it: loads that have ended, blocks that are lost."""


class RankMemory:
    """One rank: its part of the blocks, and the worker's side over it. It takes steps in turn."""

    def __init__(
        self,
        store: Store,
        spec: CacheSpec,
        way: tuple[int, int],
        number: int,
        held: Slice,
        blocks: int,
        metrics: Metrics,
        **options: Any,
    ) -> None:
        g = spec.geometry
        caches = rank_caches(held.layers, len(held.heads))
        rank = rank_of(rank_config(*way, number), caches, g)
        self.truth, self.client = store.truth, Client(store)
        self.service = Stepped(self.client, store.loops)
        self.held = held
        self.worker = WorkerSide(
            spec,
            self.service,
            Counts(LOG, metrics),
            rank=rank,
            load_seconds=LOAD_S,
            offload_seconds=LOAD_S,
            drain_seconds=1,
            **options,
        )
        self.memory: list[EngineCache] = [
            cpu(blocks, BLOCK_TOKENS, len(held.heads), g.head_dim, g.torch_dtype)
            for _ in held.layers
        ]
        named = [
            (f"layers.{n}", each.tensor, each.write)
            for n, each in zip(held.layers, self.memory, strict=True)
        ]
        self.cache, _ = PagedCache.over(named, rank.of(spec), BLOCK_TOKENS)
        self.worker.register(self.cache)
        self.queue: deque[Step] = deque()

    def run(self) -> None:
        """The next step."""
        step = self.queue.popleft()
        for layer in self.memory:  # what was there is no one's any more
            layer.tensor[step.fresh] = float("nan")
        for _, run in step.runs:
            self.check(run)
        for _, run in step.runs:
            self._write(run, step.computation)
        self.worker.begin(step.orders)
        self.worker.stage(step.orders)
        self.worker.over(step.finished)
        self.service.loops.run()
        self.service.watch()
        step.told.append((self.worker.arrived(), self.worker.bad_blocks()))

    def check(self, run: Run) -> None:
        """What the engine believes to be there is there."""
        if run.computed:
            here = self.cache.copied(run.blocks, 0, run.computed)
            wanted = self.truth.of(run.model, run.ids, 0, run.computed, held=self.held)
            assert self.truth.holds(here, wanted), f"wrong keys and values of {run.ids}"

    def check_cached(self, blocks: list[int], names: list[tuple[Hashable, Sequence[int]]]) -> None:
        """Blocks that are found by others."""
        if not blocks:
            return
        here = self.cache.copied(blocks, 0, len(blocks) * BLOCK_TOKENS)
        wanted = self.truth.of_ends(names, BLOCK_TOKENS, self.held)
        assert self.truth.holds(here, wanted), "blocks that others find are wrong"

    def _write(self, run: Run, computation: int) -> None:
        first, stop = run.computed, run.computed + run.count
        values = self.truth.of(run.model, run.ids, first, stop, computation, self.held)
        at = torch.arange(first, stop)
        slots = torch.tensor(run.blocks)[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS
        for number, layer in enumerate(self.memory):
            layer.write(values[number, 0], values[number, 1], slots)
