"""`LexicoTier` in the place of vLLM's tiers `fs` and `example`, for `tests.support.vllm_own`.

Those two answer when they are asked, or are waited for by looking into them: so is ours, here. It
finds nothing that another test stored.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from unittest.mock import MagicMock

import numpy as np
from vllm.v1.kv_offload.base import (
    LookupResult,
    OffloadKey,
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

from lexico_client.engines.vllm import LexicoTier

from .connector import MADE

BLOCK_TOKENS: Final = 64
"""A chunk has one block."""
_OWN: Final[dict[str, Any]] = json.loads(os.environ["LEXICO_OWN"])
LAYERS, ROW_BYTES = _OWN["layers"], BLOCK_TOKENS * _OWN["token_bytes"]
_NUMBERS: Final = itertools.count()
_END: Final = ScheduleEndContext([], ())


class OwnTier(LexicoTier):
    """Ours, made as the one whose place it takes."""

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        *,
        root_dir: str = "",
        locality: str = "REMOTE",
        **others: Any,
    ) -> None:
        MADE.add("LexicoTier")
        told = MagicMock(config=_config())
        settings = {**_OWN["tier"], "salt": root_dir or f"{next(_NUMBERS)}", "locality": locality}
        given = primary_kv_view if isinstance(primary_kv_view, memoryview) else rows(1)
        view = given.cast("B").cast("b", (given.nbytes // ROW_BYTES, ROW_BYTES))
        super().__init__(told, view, tier_type, backpressure_detector, **settings)
        self.chunks = _Stored(self)
        self.file_mapper = _Files(self, Path(root_dir))

    @property
    def completed_jobs(self) -> list[int]:
        """Jobs that have not been told of."""
        self.wait()
        return list(self._side._running)

    def get_num_chunks(self) -> int:
        self.wait()
        running = [each.call for each in self._side._running.values() if each.call is not None]
        return len(self.chunks.keys.union(*(call.result().keys for call in running)))

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        while (found := super().lookup(key, req_context)) is LookupResult.RETRY:
            self.on_schedule_end(_END)
            for _, call in self._side.lookups._asked:
                call.ended.wait()
        return found

    def get_finished_jobs(self) -> Iterable[Any]:
        self.wait()
        keys = {number: each.job.keys for number, each in self._side._running.items()}
        ended = list(super().get_finished_jobs())
        self.chunks.keys.update(*(keys[each.job_id] for each in ended if each.success))
        return ended

    def wait(self) -> None:
        """Until all jobs have ended."""
        for each in self._side._running.values():
            if each.call is not None:
                each.call.ended.wait()


class _Stored:
    """What `example` calls its chunks: a test puts keys into it."""

    def __init__(self, tier: OwnTier) -> None:
        self._tier = tier
        self.keys = set[OffloadKey]()

    def __setitem__(self, key: OffloadKey, there: bool) -> None:
        side = self._tier._side
        memory, seconds = side._memory.memory(0), 60.0
        work = side._pages.send(side._pages.spec, key[:-4], memory, lambda: seconds)
        side._service.wait(work, seconds)
        self.keys.add(key)


class _Files:
    """What `fs` calls its files: they are there for chunks that the service has."""

    def __init__(self, tier: OwnTier, root: Path) -> None:
        self._tier = tier
        self._root = root

    def get_file_name(self, key: OffloadKey) -> str:
        side, file = self._tier._side, self._root / key.hex()
        (found,) = side._service.wait(side._pages.found([key[:-4]], 60.0), 60.0)
        if found is not None:
            file.touch()
        return str(file)


def key(number: int) -> OffloadKey:
    """As vLLM's are: of a hash."""
    return make_offload_key(hashlib.sha256(b"%d" % number).digest(), 0)


def keys(numbers: Iterable[int]) -> list[OffloadKey]:
    return [key(number) for number in numbers]


def rows(count: int) -> memoryview:
    """Of a primary tier: each holds a chunk of the model."""
    return np.zeros((count, ROW_BYTES), np.int8).data


def region(num_chunks: int, row_bytes: int = 0) -> MagicMock:
    """Of rows that hold chunks of the model, whatever the size asked for."""
    return MagicMock(**{"create_kv_memoryview.return_value": rows(num_chunks)})


def look_up(
    tier: OwnTier, keys: list[OffloadKey], ctx: Any = None, timeout: float = 0.0
) -> list[LookupResult]:
    return [tier.lookup(key, ctx or ReqContext(req_id="test")) for key in keys]


def jobs_ended(tier: OwnTier) -> list[Any]:
    """`drain_jobs` of ours gives up what has not begun, as a reset of the caches may."""
    return list(tier.get_finished_jobs())


def _config() -> OffloadingConfig:
    layers = tuple(f"model.layers.{number}.self_attn.attn" for number in range(LAYERS))
    return OffloadingConfig(
        groups=(OffloadingGroupConfig(BLOCK_TOKENS, layers, 0),),
        worker_kv_bytes_per_block=ROW_BYTES,
        enable_kv_cache_events=False,
        extra_config={},
        engine_id="own",
        model=OffloadingModelConfig(_OWN["tier"]["model"], "float32"),
        cache=OffloadingCacheConfig(BLOCK_TOKENS, 1),
        parallel=OffloadingParallelConfig(0, 1, 1, 1, 1, 1, 0, 1, None, True),
        kv_cache_layout="LBHNC",
    )


NAMES: Final[dict[str, Any]] = {
    "FileSystemTierManager": OwnTier,
    "ExampleSecondaryTierManager": OwnTier,
    "_BLOCK_ELEMENTS": ROW_BYTES // 4,
    "_mock_mmap_region": region,
    "key": key,
    "to_keys": keys,
    "lookup_and_wait": look_up,
    "drain": jobs_ended,
}
"""Of vLLM's modules of tests of tiers → ours."""
