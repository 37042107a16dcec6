"""`LexicoConnector`: what vLLM loads. Its two sides are made apart, one in the process of the
scheduler and one in that of the worker, and share nothing but the orders that vLLM carries; and the
client of the service, where both are in one process."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
import vllm
from vllm.config import get_layers_from_vllm_config
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

from lexico_client.engines._coding import coding_of
from lexico_client.engines._counts import Counts
from lexico_client.engines._service import Service
from lexico_client.engines.vllm._coded import Finder, set_at_hand
from lexico_client.engines.vllm._config import ConnectorConfig
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm._model import spec_of
from lexico_client.engines.vllm._orders import Orders
from lexico_client.engines.vllm._paged import PagedCache, in_order
from lexico_client.engines.vllm._ranks import Rank, rank_of
from lexico_client.engines.vllm._scheduler import SchedulerSide
from lexico_client.engines.vllm._supported import check_interface, check_told, check_version
from lexico_client.engines.vllm._worker import WorkerSide
from lexico_client.engines.vllm._writing import writing
from lexico_client.engines.vllm.stats import LexicoPromMetrics, LexicoStats
from lexico_proto.errors import InternalError
from lexico_proto.metrics import PROCESS

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.kv_cache_interface import KVCacheConfig

TOLD: Final = (SchedulerOutput, NewRequestData, CachedRequestData, KVConnectorOutput, Request)
"""vLLM's classes of what it tells a connector."""

check_version(vllm.__version__)
check_interface(KVConnectorBase_V1)
check_told(TOLD)


@dataclass
class OrdersMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """Orders on their way to the worker."""

    orders: Orders = field(default_factory=Orders)


class LexicoConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Shares the prompt caches of a vLLM engine. vLLM makes one for its scheduler, and one for
    each worker.

    Raises:
        ConfigurationError: a setting that cannot be used, naming its key.
        Unsupported: a model, or a way to run it, whose caches are not covered.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        settings = ConnectorConfig.of(transfer.kv_connector_extra_config)
        spec = spec_of(vllm_config, kv_cache_config, settings)
        self._block_tokens = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        self._spec = spec
        self._rank = Rank(range(spec.geometry.layers), range(spec.geometry.kv_heads))
        self._metrics = PROCESS
        self._service = Service.shared(
            f"{transfer.engine_id} {settings}", lambda: Service(settings.client(), "vllm", LOG)
        )
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        self._over = False
        self._counts = Counts(LOG, self._metrics)
        try:
            if role == KVConnectorRole.SCHEDULER:
                self._scheduler = self._scheduler_side(settings, vllm_config)
            else:
                self._rank = rank_of(vllm_config, kv_cache_config, spec.geometry)
                self._worker = self._worker_side(settings)
        except BaseException:
            self._service.close()
            raise

    def _scheduler_side(self, settings: ConnectorConfig, vllm_config: VllmConfig) -> SchedulerSide:
        spec, transfer = self._spec, vllm_config.kv_transfer_config
        model = vllm_config.model_config.model
        coding = coding_of(self._service, settings, spec, model, known_positions=True)
        LOG.info(
            "shares prompt caches: namespace=%s codec=%s page_tokens=%d reload=%s offload=%s",
            coding.spec(spec).namespace.hex(),
            coding.codec.name if coding.waiting else settings.codec,
            spec.page_tokens,
            settings.reload,
            settings.offload or "nowhere",
        )
        return SchedulerSide(
            spec,
            Finder(self._service, coding, settings.recent_tokens, settings.match_seconds),
            self._counts,
            block_tokens=self._block_tokens,
            recent_tokens=settings.recent_tokens,
            min_load_tokens=settings.min_load_tokens,
            loads=transfer.is_kv_consumer,
            stores=transfer.is_kv_producer and settings.offload is not None,
        )

    def _worker_side(self, settings: ConnectorConfig) -> WorkerSide:
        return WorkerSide(
            self._spec,
            self._service,
            self._counts,
            set_at_hand(settings, self._spec),
            rank=self._rank,
            load_seconds=settings.load_seconds,
            offload_seconds=settings.offload_seconds,
            drain_seconds=settings.drain_seconds,
            staging_bytes=settings.staging_bytes,
            concurrent_loads=settings.concurrent_loads,
            concurrent_stores=settings.concurrent_stores,
        )

    # The scheduler's side

    def on_new_request(self, request: Request) -> None:
        try:
            self._of_scheduler.new_request(request)
        except Exception as error:  # noqa: BLE001 - as in the next
            self._counts.warn("match", error)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        try:
            tokens = self._of_scheduler.matched(request, num_computed_tokens)
        except Exception as error:  # noqa: BLE001 - a defect of ours must not end the engine
            self._counts.warn("match", error)
            tokens = 0
        return tokens, bool(tokens)

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        self._of_scheduler.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return OrdersMetadata(self._of_scheduler.orders(scheduler_output))

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        if connector_output.invalid_block_ids:
            self._of_scheduler.lost(connector_output.invalid_block_ids)

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        self._of_scheduler.finished(request.request_id)
        return False, None  # pages go from copies: nobody waits for the blocks

    def reset_cache(self) -> bool | None:
        self._of_scheduler.reset()
        return True

    @property
    def requires_kv_delivery(self) -> bool:
        """Whether a request must wait until its pages are stored."""
        return False

    # The worker's side

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        layers = get_layers_from_vllm_config(self._vllm_config, AttentionLayerBase, kv_caches)
        rank, dtype = self._rank, self._vllm_config.model_config.dtype
        cache, layout = PagedCache.over(
            [
                (name, tensor, writing(layers, name, tensor, dtype))
                for name, tensor in in_order(kv_caches, rank.layers.start)
            ],
            rank.of(self._spec),
            self._block_tokens,
        )
        self._of_worker.register(cache)
        LOG.info(
            "cache recognised: device=%s layout=%s layers=%d..%d kv_heads=%d..%d",
            cache.device,
            layout,
            *(rank.layers.start, rank.layers.stop - 1),
            *(rank.heads.start, rank.heads.stop - 1),
        )

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        self._of_worker.begin(self._orders)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are asynchronous: requests that wait for one are in no forward pass."""

    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: AttentionMetadata,
        **kwargs: Any,
    ) -> None:
        """Pages have all layers: they are copied once the step is through."""

    def wait_for_save(self) -> None:
        self._of_worker.stage(self._orders)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        self._of_worker.over(finished_req_ids)
        if self._orders.idle:
            self._of_worker.rest()
        return None, self._of_worker.arrived() or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._of_worker.bad_blocks()

    # Both

    def shutdown(self) -> None:
        if self._over:
            return
        self._over = True
        if self._worker is not None:
            self._worker.close()
        else:
            self._service.close()

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        return LexicoStats.taken(self._metrics)

    @classmethod
    def build_kv_connector_stats(
        cls, data: dict[str, Any] | None = None
    ) -> KVConnectorStats | None:
        return LexicoStats(data=dict(data or {}))

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[type, type],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> LexicoPromMetrics:
        return LexicoPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    @property
    def _of_scheduler(self) -> SchedulerSide:
        if self._scheduler is None:
            raise InternalError("a worker's connector was asked for what the scheduler's knows")
        return self._scheduler

    @property
    def _of_worker(self) -> WorkerSide:
        if self._worker is None:
            raise InternalError("the scheduler's connector was asked for what a worker's does")
        return self._worker

    @property
    def _orders(self) -> Orders:
        metadata = self._get_connector_metadata()
        return metadata.orders if isinstance(metadata, OrdersMetadata) else Orders()


with suppress(ValueError):  # it is there already
    # `MultiConnector` looks up by the class's name alone whose statistics it has.
    KVConnectorFactory.register_connector(
        LexicoConnector.__name__, LexicoConnector.__module__, LexicoConnector.__name__
    )
