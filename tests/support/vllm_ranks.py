"""Engines of several ranks: the worker class, once for each rank, over memory of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy.typing as npt
import torch
from torch import Tensor

from lexico_client import AsyncClient
from lexico_client.engines._counts import Counts
from lexico_client.engines._service import Service
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm._orders import LoadOrder, Orders, StoreOrder
from lexico_client.engines.vllm._paged import PagedCache, in_order
from lexico_client.engines.vllm._ranks import Rank, rank_of
from lexico_client.engines.vllm._worker import WorkerSide
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import Family, Metrics
from tests.support.client_fixtures import PATIENT
from tests.support.sliced_pages import split
from tests.support.vllm_caches import Make, cpu
from tests.support.vllm_fakes import BLOCK_TOKENS
from tests.support.waiting import PATIENCE_S, wait_until

BLOCKS: Final = 24
HERE, THERE = (3, 9, 2, 14, 7, 5, 11, 20), (23, 1, 8, 0, 16, 4, 6, 10)


def rank_config(tensor: int, pipeline: int, rank: int) -> Any:
    """What `VllmConfig` says of a rank."""
    parallel = SimpleNamespace(
        tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, rank=rank
    )
    return SimpleNamespace(parallel_config=parallel)


def rank_caches(layers: range, heads: int) -> Any:
    """What `KVCacheConfig` says of a rank: its layers, by the model's numbers."""
    names = [f"model.layers.{i}.self_attn.attn" for i in layers]
    group = SimpleNamespace(layer_names=names, kv_cache_spec=SimpleNamespace(num_kv_heads=heads))
    return SimpleNamespace(kv_cache_groups=[group])


class RankWorker:
    """One rank."""

    def __init__(self, spec: CacheSpec, rank: Rank, client: AsyncClient, **options: Any) -> None:
        make: Make = options.pop("make", cpu)
        self.rank, self.metrics = rank, Metrics()
        self.side = WorkerSide(
            spec,
            Service(client, "vllm", LOG),
            Counts(LOG, self.metrics),
            options.pop("dictionary", None),
            rank=rank,
            load_seconds=PATIENCE_S,
            offload_seconds=PATIENCE_S,
            drain_seconds=PATIENCE_S,
            **{
                "staging_bytes": 1 << 20,
                "concurrent_loads": 2,
                "concurrent_stores": 1,
                **options,
            },
        )
        g, heads = spec.geometry, len(rank.heads)
        self.layers = [
            make(BLOCKS, BLOCK_TOKENS, heads, g.head_dim, g.torch_dtype) for _ in rank.layers
        ]
        named = {f"layers.{i}": each for i, each in zip(rank.layers, self.layers, strict=True)}
        writes = {name: each.write for name, each in named.items()}
        tensors = {name: each.tensor for name, each in reversed(named.items())}
        self.cache, _ = PagedCache.over(
            [(name, tensor, writes[name]) for name, tensor in in_order(tensors, rank.layers.start)],
            rank.of(spec),
            BLOCK_TOKENS,
        )
        self.side.register(self.cache)

    def own(self, cache: Tensor) -> Tensor:
        """What this rank holds of `[layers, 2, tokens, kv_heads, head_dim]`."""
        layers, heads = self.rank.layers, self.rank.heads
        return cache[layers.start : layers.stop, :, :, heads.start : heads.stop]

    def write(self, cache: Tensor, blocks: tuple[int, ...]) -> None:
        """Computes a prompt."""
        own, at = self.own(cache), torch.arange(cache.shape[2])
        slots = torch.tensor(blocks)[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS
        for layer, each in zip(own, self.layers, strict=True):
            each.write(layer[0], layer[1], slots)

    def read(self, first: int, stop: int) -> Tensor:
        """What its blocks have."""
        return self.cache.copied(THERE, first, stop - first)


class RankedEngine:
    """An engine of some ranks."""

    def __init__(
        self,
        spec: CacheSpec,
        tensor: int,
        pipeline: int,
        folder: Path,
        dictionary: DictionarySet | None = None,
        **addresses: Any,
    ) -> None:
        g = spec.geometry
        self.spec, self.workers = spec, list[RankWorker]()
        for number, held in enumerate(split(g.layers, g.kv_heads, tensor, pipeline)):
            rank = rank_of(
                rank_config(tensor, pipeline, number),
                rank_caches(held.layers, len(held.heads)),
                g,
            )
            assert (rank.layers, rank.heads) == (held.layers, held.heads)
            client = AsyncClient(timeouts=PATIENT, dictionaries_dir=folder, **addresses)
            self.workers.append(RankWorker(spec, rank, client, dictionary=dictionary))

    def store(
        self, ids: npt.NDArray[Any], cache: Tensor, salt: bytes = b"", assembly: bytes = bytes(16)
    ) -> None:
        """Computes a prompt, and has every rank store it."""
        order = StoreOrder("s", self._salted(salt), ids, HERE, 0, assembly)
        for worker in self.workers:
            worker.write(cache, HERE)
            worker.side.stage(Orders(stores=[order]))
        sides = [worker.side for worker in self.workers]
        wait_until(lambda: not any(side.stores_under_way for side in sides), "the stores to end")

    def load(
        self, ids: npt.NDArray[Any], start: int, stop: int, salt: bytes = b""
    ) -> list[set[int]]:
        """The blocks that each rank lost."""
        order = LoadOrder(
            "r", self._salted(salt), ids, THERE[: -(-stop // BLOCK_TOKENS)], start, stop
        )
        for worker in self.workers:
            worker.side.begin(Orders(loads=[order]))
        lost = []
        for worker in self.workers:
            assert wait_until(worker.side.arrived, "a load to end") == {"r"}
            lost.append(worker.side.bad_blocks())
        return lost

    def _salted(self, salt: bytes) -> CacheSpec:
        return replace(self.spec, salt=salt) if salt else self.spec

    def counted(self, family: Family) -> dict[str, int | float]:
        """Of all ranks together, as vLLM adds them up."""
        found: dict[str, int | float] = {}
        for worker in self.workers:
            for values, number in worker.metrics.snapshot().get(family, {}).items():
                name = " ".join(values)
                found[name] = found.get(name, 0) + number
        return {name: number for name, number in found.items() if number}

    def close(self) -> None:
        for worker in self.workers:
            worker.side.close()
