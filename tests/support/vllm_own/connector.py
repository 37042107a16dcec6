"""`LexicoConnector` and `LexicoOffloadingConnector` in the place of vLLM's connectors.

What ours finds is said by the test: as much as the other would have found.
"""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
from vllm.config import KVTransferConfig, VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

from lexico_client.engines.vllm import LexicoConnector, LexicoOffloadingConnector
from lexico_client.engines.vllm._coded import Found
from lexico_client.engines.vllm.connector import OrdersMetadata
from lexico_codec.codecs.codec import Codec
from lexico_codec.spec import CacheSpec

MADE: Final[set[str]] = set()
"""Classes of ours that were made, or asked for, since this was last emptied."""
OWN: Final[dict[str, Any]] = json.loads(os.environ["LEXICO_OWN"])


_LAST: Final[list[Own]] = []
"""The connector that was made last."""


@dataclass
class Answer:
    """Of a match: what the test says when it is looked at."""

    spec: CacheSpec
    finder: Finder
    ended: threading.Event

    def result(self) -> Found:
        pages = self.finder.tokens // self.spec.page_tokens
        return Found(self.spec, pages, self.spec, pages)


@dataclass
class Finder:
    """Finds as many tokens as the test says."""

    codec: Codec
    tokens: int = 0

    def begin(self, base: CacheSpec, token_ids: npt.NDArray[np.uint32]) -> Answer:
        ended = threading.Event()
        ended.set()
        return Answer(base, self, ended)


class Own(LexicoConnector):
    """Ours, made as the one whose place it takes."""

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        MADE.add("LexicoConnector")
        asked = vllm_config.kv_transfer_config
        groups = kv_cache_config.kv_cache_groups
        block = groups[0].kv_cache_spec.block_size if groups else 16
        config = copy.copy(vllm_config)
        config.kv_transfer_config = KVTransferConfig(
            kv_connector="LexicoConnector",
            kv_connector_module_path="lexico_client.engines.vllm",
            kv_role=asked.kv_role,
            kv_load_failure_policy="recompute",
            kv_connector_extra_config={**OWN["connector"], "page_tokens": block},
        )
        super().__init__(config, role, _caches(config, block, kv_cache_config.num_blocks))
        _LAST[:] = [self]
        self.within = False
        self._asked = asked
        self._defers = dict[str, int]()
        self._finder = Finder(self._spec.codec)
        if self._scheduler is not None:
            self._scheduler._finding = self._finder

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        extra = self._asked.kv_connector_extra_config
        left = self._defers.setdefault(
            request.request_id, extra.get("num_defers_before_matching", 0)
        )
        if left:
            self._defers[request.request_id] -= 1
            return None, False
        if (request.kv_transfer_params or {}).get("do_remote_prefill"):
            return self.matched(request, num_computed_tokens, request.num_tokens)
        return self.matched(request, num_computed_tokens, extra.get("matched_tokens", 0))

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> OrdersMetadata:
        """With what `MockKVConnector` tells of a step."""
        metadata = super().build_connector_meta(scheduler_output)
        cached = scheduler_output.scheduled_cached_reqs
        metadata.requests = [*scheduler_output.scheduled_new_reqs, *cached.resumed_req_ids]
        return metadata

    def update_state_after_alloc(
        self, request: Request, blocks: Any, num_external_tokens: int
    ) -> None:
        """Of what another connector loads within its step, ours is told nothing."""
        super().update_state_after_alloc(request, blocks, 0 if self.within else num_external_tokens)

    def matched(self, request: Request, computed: int, tokens: int) -> tuple[int | None, bool]:
        """What it promises where so many tokens behind those computed are stored."""
        self._finder.tokens = min(computed + tokens, request.num_tokens)
        return super().get_num_new_matched_tokens(request, computed)


class OwnOffloading(LexicoOffloadingConnector):
    """Ours, which says that it was made."""

    def __init__(self, *arguments: Any) -> None:
        MADE.add("LexicoOffloadingConnector")
        super().__init__(*arguments)


def asked_for(ours: type) -> type:
    """By its name among vLLM's connectors."""
    MADE.add("LexicoConnector")
    return ours


def _caches(config: VllmConfig, block: int, blocks: int) -> KVCacheConfig:
    """Those of the model, which vLLM's tests do not trouble to describe."""
    hf = config.model_config.hf_config
    names = [f"model.layers.{i}.self_attn.attn" for i in range(hf.num_hidden_layers)]
    spec = FullAttentionSpec(
        block_size=block,
        num_kv_heads=hf.num_key_value_heads,
        head_size=hf.head_dim,
        dtype=config.model_config.dtype,
    )
    return KVCacheConfig(
        num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(names, spec)]
    )


def beside() -> Mock:
    """What vLLM's tests put into a scheduler, and tell what it says: ours hears all else."""
    spied = Mock(wraps=_LAST[-1])
    spied.supports_divergent_local_hybrid_hits = False  # a property of ours
    return spied


def says(tokens: dict[str, int], async_load: bool) -> Callable[[Request, int], Any]:
    """The answer of the connector that was made last: of ours where a load is asynchronous; else of
    another one, beside which ours is told that it has nothing to load."""
    own = _LAST[-1]

    def answer(request: Request, computed: int) -> tuple[int | None, bool]:
        found = tokens.get(request.request_id, 0)
        if async_load:
            return own.matched(request, computed, found)
        own.within = True
        own.matched(request, computed, 0)
        return found, False

    return answer


NAMES: Final[dict[str, Any]] = {
    "MockKVConnector": Own,
    "ExampleConnector": Own,
    "OffloadingConnector": OwnOffloading,
    "create_mock_connector": beside,
    "_make_get_num_new_matched_tokens": says,
}
"""Of vLLM's test modules → ours."""
REGISTERED: Final[dict[str, Any]] = {
    "NixlConnector": Own,
    "ExampleConnector": Own,
    "OffloadingConnector": OwnOffloading,
}
"""Names of connectors → ours."""
