"""`LexicoOffloadingConnector`: vLLM's own offloading connector, which tells our tier of the engine.

vLLM gives a tier names and sizes. This gives it the engine's configuration, so that weights that
are not those of the files, and hashes that tell no prompts apart, are refused; and it has the
workers find out whether blocks are laid out as the tier reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import vllm
from vllm.config import get_layers_from_vllm_config
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from lexico_client.engines.vllm._layout import elements, recognised
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm._model import check_caches, dtype_of
from lexico_client.engines.vllm._supported import check_version
from lexico_client.engines.vllm._writing import writing
from lexico_client.engines.vllm.tier._config import tier_settings
from lexico_client.engines.vllm.tier._layout import check_found, expected
from lexico_client.engines.vllm.tier._supported import check_tier_interface
from lexico_client.engines.vllm.tier._told import telling
from lexico_codec.hf_geometry import geometry_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

check_version(vllm.__version__)
check_tier_interface((OffloadingConnector,), ())


class LexicoOffloadingConnector(OffloadingConnector):  # type: ignore[misc]
    """Does what its base does, and checks for the tiers of ours what these cannot see.

    Raises:
        ConfigurationError: a setting of a tier that cannot be used, naming its key.
        Unsupported: a model, or a way to run it, whose chunks are not covered.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        self._tiers = tier_settings(vllm_config.kv_transfer_config.kv_connector_extra_config)
        if self._tiers:
            model = vllm_config.model_config
            geometry = geometry_of(model.hf_config, dtype_of(vllm_config))
            self._dtype = geometry.torch_dtype
            check_caches(kv_cache_config, geometry, vllm_config.parallel_config)
        with telling(vllm_config):
            super().__init__(vllm_config, role, kv_cache_config)

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        if self._tiers:
            self._check_layout(kv_caches)
        super().register_kv_caches(kv_caches)

    def _check_layout(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """
        Raises:
            Unsupported: blocks that are not laid out as the tiers of ours read them.
        """
        config = self._vllm_config
        group = self._kv_cache_config.kv_cache_groups[0].kv_cache_spec
        layers = get_layers_from_vllm_config(config, AttentionLayerBase, kv_caches)
        names = {
            expected(
                settings.layout,
                config.cache_config.kv_cache_layout,
                str(config.device_config.device_type),
            )
            for settings in self._tiers
        }
        size = (group.block_size, group.num_kv_heads, group.head_size)
        for name, registered in kv_caches.items():
            tensor = elements(registered, self._dtype)
            write = writing(layers, name, registered, config.model_config.dtype)
            found = recognised(tensor, *size, write, name)[1]
            for wanted in names:
                check_found(wanted, found, name, tensor, *size)
        for wanted in names:
            LOG.info("blocks recognised: layout=%s layers=%d", wanted, len(kv_caches))
