"""vLLM's own tiering managers with our tier, without an engine: two of them share a service.

Run by the Python that has vLLM, with the checkout in PYTHONPATH:

    python -m tests.support.vllm_tier_managers '{"model": FOLDER, "tier": SETTINGS}'

The model is the tiny one of `tests.support.saved_model`. Prints what it found as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from typing import Any, Final

import numpy as np
from vllm.v1.kv_offload.base import (
    LookupResult,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.manager import TieringOffloadingManager
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

BLOCK_TOKENS, BLOCKS, LAYERS, NUMBERS = 16, 4, 2, 2 * 2 * 8
CHUNKS: Final = 12
CHUNK_BYTES: Final = LAYERS * BLOCKS * BLOCK_TOKENS * NUMBERS * 4


def manager(name: str, model: str, tier: dict[str, Any]) -> TieringOffloadingManager:
    """That of an engine, as its connector makes it."""
    extra = {"cpu_bytes_to_use": CHUNKS * CHUNK_BYTES, "secondary_tiers": [tier]}
    layers = tuple(f"model.layers.{i}.self_attn.attn" for i in range(LAYERS))
    config = OffloadingConfig(
        groups=(OffloadingGroupConfig(BLOCK_TOKENS, layers, 0),),
        worker_kv_bytes_per_block=CHUNK_BYTES // BLOCKS,
        enable_kv_cache_events=False,
        extra_config=extra,
        engine_id=f"lexico-{os.getpid()}-{name}",
        model=OffloadingModelConfig(model, "float32"),
        cache=OffloadingCacheConfig(BLOCK_TOKENS, BLOCKS),
        parallel=OffloadingParallelConfig(0, 1, 1, 1, 1, 1, 0, 1, None, True),
        kv_cache_layout="LBHNC",
    )
    return TieringOffloadingSpec(config).get_manager()


def step(of: TieringOffloadingManager) -> None:
    """What a step of the scheduler ends with."""
    of.on_schedule_end(ScheduleEndContext([], []))
    time.sleep(0.01)  # each job has a deadline


def settle(of: TieringOffloadingManager) -> None:
    """Steps until no job is under way."""
    while of.has_pending_work():
        step(of)


def rows(of: TieringOffloadingManager, slots: Any) -> Any:
    """Chunks of the primary tier, as float32."""
    memory = np.asarray(of.primary_tier.get_kv_memoryview())
    return memory[slots][:, :CHUNK_BYTES].copy().view(np.float32)


def main() -> None:
    given = json.loads(sys.argv[1])
    one, other = (manager(name, given["model"], dict(given["tier"])) for name in ("one", "other"))
    keys = [make_offload_key(hashlib.sha256(bytes([i])).digest(), 0) for i in range(3)]
    unknown = make_offload_key(bytes(32), 0)
    found: dict[str, Any] = {}

    context = ReqContext("a")
    one.on_new_request(context)
    prepared = one.prepare_store(keys, context)
    slots = prepared.store_spec.chunk_ids
    computed = np.random.default_rng(0).standard_normal((3, CHUNK_BYTES // 4)).astype(np.float32)
    view = one.primary_tier.get_kv_memoryview()
    for slot, chunk in zip(slots.tolist(), computed, strict=True):
        np.asarray(view)[slot, :CHUNK_BYTES] = chunk.view(np.int8)
    one.complete_store(keys, context)
    settle(one)
    one.on_request_finished(context)

    context = ReqContext("b")
    other.on_new_request(context)
    said: list[LookupResult] = []
    while not said or {LookupResult.RETRY, LookupResult.HIT_PENDING} & set(said):
        said = [other.lookup(key, context) for key in (*keys, unknown)]
        step(other)
    found["said"] = [each.name for each in said]
    loaded = other.prepare_load(keys, context).chunk_ids
    found["equal"] = bool(np.array_equal(rows(other, loaded), computed))
    other.complete_load(keys, context)
    other.on_request_finished(context)

    other.reset_cache()
    context = ReqContext("c")
    other.on_new_request(context)
    while other.lookup(keys[0], context) is LookupResult.RETRY:
        step(other)
    found["after_reset"] = other.lookup(keys[0], context).name
    other.on_request_finished(context)
    stats = other.get_stats()
    found["shown"] = sorted(stats.reduce()) if stats is not None else []
    del view
    for each in (one, other):
        each.shutdown()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
