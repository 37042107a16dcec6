"""A connector for vLLM that stands beside ours. It promises the beginning of the first prompt
within a step, brings nothing, and says so, as one whose store lost it meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
)

BLOCKS: Final = 16
"""That it promises."""


@dataclass
class Lost(KVConnectorMetadata):  # type: ignore[misc]
    """Blocks that will not come."""

    blocks: set[int] = field(default_factory=set)


class Faulty(KVConnectorBase_V1):  # type: ignore[misc]
    """See above."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._tokens = self._vllm_config.cache_config.block_size
        self._promised = False
        self._lost: set[int] = set()

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int, bool]:
        found = 0 if self._promised else BLOCKS * self._tokens - num_computed_tokens
        return found, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens:
            self._promised = True
            self._lost = set(blocks.get_block_ids()[0][:BLOCKS])

    def build_connector_meta(self, scheduler_output: Any) -> Lost:
        lost, self._lost = self._lost, set()
        return Lost(lost)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Lost)
        self._lost = metadata.blocks

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(self, *arguments: Any, **named: Any) -> None: ...

    def wait_for_save(self) -> None: ...

    def get_block_ids_with_load_errors(self) -> set[int]:
        lost, self._lost = self._lost, set()
        return lost
