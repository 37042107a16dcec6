"""`LexicoTier`: what vLLM's tiering spec loads as a secondary tier, in its scheduler's process."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import torch
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
    OffloadingConnectorStats,
)
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    RequestOffloadingContext,
)
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from lexico_client.engines._coded_pages import CodedPages
from lexico_client.engines._coding import coding_of
from lexico_client.engines._counts import Counts
from lexico_client.engines._service import Service
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm._supported import check_version
from lexico_client.engines.vllm.stats import SHOWN
from lexico_client.engines.vllm.tier._config import TierConfig
from lexico_client.engines.vllm.tier._layout import Chunks
from lexico_client.engines.vllm.tier._model import CONNECTOR, model_of
from lexico_client.engines.vllm.tier._side import Ended, Job, TierSide
from lexico_client.engines.vllm.tier._supported import check_tier_interface
from lexico_client.engines.vllm.tier._told import engine_config
from lexico_proto.errors import InternalError
from lexico_proto.metrics import ENGINE_STAGED, PROCESS

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingMetricMetadata, OffloadingSpec, ReqContext
    from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector
    from vllm.v1.kv_offload.tiering.base import ScheduleEndContext

SCHEME: Final = "vllm-tier"
"""vLLM's hash of a chunk's last block: SHA-256 over that of the block before, token ids and what
keeps requests apart (cache salt, LoRA adapter, prompt embeddings). A seed stands before the first
block."""
_SEED: Final = "PYTHONHASHSEED"
TOLD: Final = (
    OffloadingConfig,
    OffloadingCacheConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
    TransferJob,
    JobResult,
    LookupResult,
)

check_version(vllm.__version__)
check_tier_interface((SecondaryTierManager,), TOLD)


class LexicoTier(SecondaryTierManager):  # type: ignore[misc]
    """Shares the chunks of a vLLM engine's primary tier.

    Raises:
        ConfigurationError: a setting that cannot be used, naming its key.
        Unsupported: a model, or a way to run it, whose chunks are not covered.
    """

    medium: ClassVar[Medium] = Medium.STORAGE
    cache_hit_source: ClassVar[CacheHitSource] = CacheHitSource.EXTERNAL_UNSPECIFIED

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: BackpressureDetector | None = None,
        **settings: Any,
    ) -> None:
        """
        Args:
            offloading_spec: what vLLM tells of the engine.
            primary_kv_view: `[chunks, bytes]`, the primary tier's memory.
            tier_type: name of the class.
            backpressure_detector: vLLM's, which drops stores while the service is slow.
            settings: the keys of the tier's entry in `secondary_tiers`.
        """
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        found = TierConfig.of(settings)
        self.locality = Locality(found.locality)
        engine = engine_config()
        model = model_of(offloading_spec.config, engine, found)
        # vLLM releases the view once this is shut down, so it is held by `TierSide` alone.
        chunks = Chunks(torch.from_numpy(np.asarray(primary_kv_view)), model.shape)
        counts = Counts(LOG, PROCESS)
        service = Service(found.client(), "vllm-tier", LOG)
        try:
            coding = coding_of(service, found, model.base, model.folder, known_positions=False)
        except BaseException:
            service.close()
            raise
        pages = CodedPages(service.client, SCHEME, model.base, coding)
        self._side = TierSide(
            pages,
            chunks,
            service,
            counts,
            found,
            chunk_tokens=model.base.page_tokens,
            chunk_bytes=model.shape.bytes,
        )
        self._counts = counts
        LOG.info(
            "shares chunks: namespace=%s codec=%s chunk_tokens=%d layout=%s reload=%s offload=%s",
            pages.spec.namespace.hex(),
            pages.spec.codec.name,
            model.base.page_tokens,
            model.shape.layout,
            found.reload,
            found.offload or "nowhere",
        )
        if engine is None:
            LOG.warning(
                "the tier is not told how the engine was started: weights and layout are taken "
                "as they were given, and adapters are known by name and path; kv_connector %s "
                "checks them",
                CONNECTOR,
            )
        if os.environ.get(_SEED) is not None:
            LOG.info("%s is set: engines share chunks if they have the same", _SEED)

    def lookup(self, key: bytes, req_context: ReqContext) -> LookupResult:
        try:
            found = self._side.lookups.lookup(key, req_context.req_id)
        except Exception as error:  # noqa: BLE001 - a defect of ours must not end the engine
            self._counts.warn("match", error)
            found = False
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    def submit_store(self, job_metadata: TransferJob) -> None:
        self._side.store(_job(job_metadata))

    def submit_load(self, job_metadata: TransferJob) -> None:
        self._side.load(_job(job_metadata))

    def get_finished_jobs(self) -> Iterable[JobResult]:
        return [self._result(ended) for ended in self._side.ended()]

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._side.lookups.finished(req_context.req_id)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._side.lookups.ask()

    def drain_jobs(self) -> None:
        self._side.drain()

    def shutdown(self) -> None:
        """
        Raises:
            InternalError: the primary tier is in use still, and must stay.
        """
        self._side.close()
        gc.collect()  # errors of jobs that failed may hold views of the primary tier in circles

    @classmethod
    def build_metric_definitions(
        cls, extra_config: dict[str, Any]
    ) -> dict[str, OffloadingMetricMetadata]:
        counters = {
            family.name: OffloadingCounterMetadata(
                documentation=family.help,
                labelnames=tuple(label.name for label in family.labels),
            )
            for family in SHOWN
        }
        staged = OffloadingGaugeMetadata(documentation=ENGINE_STAGED.help)
        return {**counters, ENGINE_STAGED.name: staged}

    def get_stats(self) -> OffloadingConnectorStats | None:
        changes = PROCESS.take_changes((*SHOWN, ENGINE_STAGED))
        if not changes:
            return None
        stats = OffloadingConnectorStats()
        for name, values, number in changes:
            if name == ENGINE_STAGED.name:
                stats.set_gauge(name, PROCESS.gauge(ENGINE_STAGED).number)
            elif isinstance(number, int):
                stats.increase_counter(name, number, tuple(values))
        return stats

    def _result(self, ended: Ended) -> JobResult:
        return JobResult(
            job_id=ended.number,
            success=ended.success,
            successful_keys=tuple(ended.keys) or None,
            transfer_time=ended.seconds,
            transfer_bytes=ended.moved * self._side.chunk_bytes,
        )


def _job(told: TransferJob) -> Job:
    """
    Raises:
        InternalError: keys and slots that are not as many.
    """
    keys, slots = [bytes(key) for key in told.keys], told.chunk_ids.tolist()
    if len(keys) != len(slots):
        raise InternalError(f"job {told.job_id}: {len(keys)} keys, {len(slots)} slots")
    return Job(told.job_id, keys, slots)
