"""Primary tiers as vLLM keeps them, and what it tells a tier of its engine, without vLLM."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor

from lexico_client.engines.vllm.tier._layout import ChunkShape
from lexico_codec.geometry import Geometry
from tests.support.vllm_caches import Make, cpu, packed, packed_by_token

ENGINES: Final[dict[str, Make]] = {
    "heads-first": packed,
    "tokens-first": packed_by_token,
    "vllm-cpu": cpu,
}
"""Layout → a cache that an engine of that layout writes into."""


class PrimaryTier:
    """Rows of chunks: NaN where no engine wrote, and a tail that nobody may touch."""

    def __init__(self, shape: ChunkShape, slots: int, tail: int = 64) -> None:
        self.shape = shape
        self._tail = tail
        self.rows = torch.zeros((slots, shape.bytes + tail), dtype=torch.int8)
        self.rows[:, : shape.bytes].view(shape.dtype).fill_(float("nan"))

    def compute(self, slot: int, cache: Tensor) -> None:
        """An engine's keys and values of a chunk, `[layers, 2, tokens, heads, dim]`, written by its
        own kernel into blocks, which its worker then copies."""
        shape = self.shape
        parts = self._parts(slot)
        for place, layer in zip(shape.places, cache.to(shape.dtype), strict=True):
            engine = self._engine()
            engine.write(layer[0], layer[1], torch.arange(shape.blocks * shape.block_tokens))
            whole = engine.tensor
            raw = whole.as_strided((shape.blocks, whole.stride(0)), (whole.stride(0), 1))
            parts[place] = raw

    def computed(self, slot: int) -> Tensor:
        """What `compute` wrote, found by trying each token's place with the engine's kernel."""
        shape, parts = self.shape, self._parts(slot)
        tokens = shape.blocks * shape.block_tokens
        numbers = torch.arange(2 * tokens * shape.heads * shape.dim, dtype=torch.float32)
        where = numbers.view(2, tokens, shape.heads, shape.dim)
        found = torch.empty((len(shape.places), *where.shape), dtype=shape.dtype)
        engine = self._engine(torch.float32)
        engine.write(where[0], where[1], torch.arange(tokens))
        whole = engine.tensor
        order = whole.as_strided((shape.blocks, whole.stride(0)), (whole.stride(0), 1)).long()
        for layer, place in enumerate(shape.places):
            found[layer].view(-1)[order.flatten()] = parts[place].flatten()
        return found

    def is_whole(self) -> bool:
        """Whether the tails are untouched."""
        return not self.rows[:, self.shape.bytes :].any()

    def _parts(self, slot: int) -> Tensor:
        row = self.rows[slot, : self.shape.bytes].view(self.shape.dtype)
        return row.view(len(self.shape.places), self.shape.blocks, -1)

    def _engine(self, dtype: torch.dtype | None = None) -> Any:
        shape = self.shape
        made = ENGINES[shape.layout]
        return made(shape.blocks, shape.block_tokens, shape.heads, shape.dim, dtype or shape.dtype)


def chunk_shape(
    geometry: Geometry, layout: str = "heads-first", blocks: int = 2, block_tokens: int = 16
) -> ChunkShape:
    """Of a model whose layers lie in order."""
    return ChunkShape(
        tuple(range(geometry.layers)),
        blocks,
        block_tokens,
        geometry.kv_heads,
        geometry.head_dim,
        geometry.torch_dtype,
        layout,
    )


def told(folder: Path | str, geometry: Geometry, **changes: Any) -> Any:
    """An `OffloadingConfig`; changes are `part__field`."""
    block_tokens, tensor = changes.pop("block_tokens", 16), changes.get("parallel__tp_size", 1)
    heads = max(1, geometry.kv_heads // tensor)
    size = geometry.layers * heads * 2 * geometry.head_dim * geometry.torch_dtype.itemsize
    made = SimpleNamespace(
        groups=(
            SimpleNamespace(
                tokens_per_block=block_tokens,
                layer_names=tuple(f"model.layers.{i}.attn" for i in range(geometry.layers)),
            ),
        ),
        worker_kv_bytes_per_block=block_tokens * size,
        model=SimpleNamespace(name=str(folder), dtype=geometry.dtype),
        cache=SimpleNamespace(blocks_per_chunk=2),
        parallel=SimpleNamespace(
            world_size=tensor,
            tp_size=1,
            pp_size=1,
            pcp_size=1,
            dcp_size=1,
            is_parallelism_agnostic=True,
        ),
        replicated_layout=False,
        canonical_layout=False,
        kv_cache_layout="LBHNC",
    )
    for name, value in changes.items():
        part, _, field = name.partition("__")
        setattr(getattr(made, part) if field else made, field or part, value)
    return made


def engine_told(config: Any, **changes: Any) -> Any:
    """A `VllmConfig` as for the connector, with what a tier looks at beside."""
    config.device_config = SimpleNamespace(device_type=changes.pop("device", "cuda"))
    config.lora_config = changes.pop("lora", None)
    config.cache_config.prefix_caching_hash_algo = changes.pop("algorithm", "sha256")
    assert not changes
    return config
