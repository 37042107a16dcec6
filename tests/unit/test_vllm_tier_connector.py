"""`LexicoOffloadingConnector` over a stand-in for vLLM's connector."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import pytest

from lexico_client.engines.vllm.tier import _supported

MODULE: Final = "lexico_client.engines.vllm.tier.connector"
BASE: Final = "vllm.distributed.kv_transfer.kv_connector.v1"


class OffloadingConnector:
    """What is had of it: it keeps what it is given."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        self._vllm_config, self._kv_cache_config = vllm_config, kv_cache_config
        self.registered: list[Any] = []

    def register_kv_caches(self, kv_caches: Any) -> None:
        self.registered.append(kv_caches)


@pytest.fixture
def connector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class."""
    methods = json.loads(_supported.INTERFACE.read_text())["classes"]["OffloadingConnector"]
    assert set(methods["methods"]) == {"__init__", "register_kv_caches"}
    parts: dict[str, dict[str, Any]] = {
        "vllm": {"__version__": "0.32.0"},
        "vllm.config": {"get_layers_from_vllm_config": None},
        f"{BASE}.base": {"KVConnectorRole": None},
        f"{BASE}.offloading_connector": {"OffloadingConnector": OffloadingConnector},
        "vllm.model_executor.layers.attention_layer_base": {"AttentionLayerBase": None},
    }
    for name, attributes in parts.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE).LexicoOffloadingConnector
    sys.modules.pop(MODULE, None)


def test_without_a_tier_of_ours_it_asks_nothing_of_an_engine(connector: Any) -> None:
    """Caches of a state-space model have no heads, say."""
    extra = {"spec_name": "CPUOffloadingSpec"}
    config = SimpleNamespace(kv_transfer_config=SimpleNamespace(kv_connector_extra_config=extra))
    groups = [SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=16))]
    made = connector(config, None, SimpleNamespace(kv_cache_groups=groups))
    caches = {"model.layers.0.mixer": object()}
    made.register_kv_caches(caches)
    assert made.registered == [caches]
