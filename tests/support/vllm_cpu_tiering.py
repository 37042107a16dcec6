"""vLLM's tiering spec on a CPU, for tests alone: blocks are copied by this process.

vLLM's own worker copies between a device and the host, and does not start without one. The rest is
vLLM's: the primary tier, its manager and the secondary tiers. Loaded by `spec_module_path`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec


class CopyingWorker(OffloadingWorker):  # type: ignore[misc]
    """Copies at once; for models with one group of caches."""

    def __init__(
        self, caches: CanonicalKVCaches, blocks_per_chunk: int, region: SharedOffloadRegion
    ) -> None:
        (refs,) = caches.group_data_refs
        assert [ref.tensor_idx for ref in refs] == list(range(len(caches.tensors)))
        self._blocks = [each.tensor for each in caches.tensors]
        self._rows = [
            region.create_next_worker_view(each.page_size_bytes * blocks_per_chunk)
            for each in caches.tensors
        ]
        self._blocks_per_chunk = blocks_per_chunk
        self._region = region
        self._done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: Any) -> bool:
        return self._copied(job_id, src_spec, dst_spec.chunk_ids.tolist(), stores=True)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: GPULoadStoreSpec) -> bool:
        return self._copied(job_id, dst_spec, src_spec.chunk_ids.tolist(), stores=False)

    def get_finished(self) -> list[TransferResult]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        """Every job has ended by the time it is submitted."""

    def shutdown(self) -> None:
        self._blocks.clear()
        self._rows.clear()
        self._region.cleanup()

    def _copied(
        self, job_id: int, engine: GPULoadStoreSpec, slots: list[int], *, stores: bool
    ) -> bool:
        began, moved, size = time.perf_counter(), 0, self._blocks_per_chunk
        first = engine.block_indices[0] % size  # a load may begin within a chunk
        for place, block in enumerate(engine.block_ids.tolist(), first):
            for blocks, rows in zip(self._blocks, self._rows, strict=True):
                there = rows[slots[place // size]].view(size, -1)[place % size]
                here = blocks[block]
                into, out = (there, here) if stores else (here, there)
                into.copy_(out)
                moved += here.nbytes
        seconds = time.perf_counter() - began
        self._done.append(
            TransferResult(job_id=job_id, success=True, transfer_size=moved, transfer_time=seconds)
        )
        return True


class CPUTieringSpec(TieringOffloadingSpec):  # type: ignore[misc]
    """The spec, with that worker."""

    _worker: OffloadingWorker | None

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        if self._worker is None:
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = CopyingWorker(kv_caches, self.blocks_per_chunk, region)
        return self._worker


def settle(llm: Any) -> dict[str, Any]:
    """Steps the engine until every chunk that is to be stored is, and vLLM has been told so."""
    core = llm.llm_engine.engine_core.engine_core
    connector = core.scheduler.connector
    while connector.has_pending_push_work():
        core.step_fn()
        time.sleep(0.01)  # each job has a deadline
    return {"settled": True}
