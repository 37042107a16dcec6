"""As much of vLLM as its secondary tier imports, for tests of the tier without it."""

from __future__ import annotations

import enum
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from lexico_client.engines.vllm.tier import _supported

MANAGER: Final = "lexico_client.engines.vllm.tier.manager"
STATS: Final = "lexico_client.engines.vllm.stats"


@dataclass
class JobResult:
    """As vLLM has it."""

    job_id: int
    success: bool
    successful_keys: Any = None
    transfer_time: float | None = None
    transfer_bytes: int | None = None


@dataclass
class Stats:
    """What was counted since the last time."""

    counters: dict[str, int] = field(default_factory=dict)

    def increase_counter(self, name: str, number: int, labels: tuple[str, ...]) -> None:
        key = " ".join((name, *labels))
        self.counters[key] = self.counters.get(key, 0) + number

    def set_gauge(self, name: str, number: int) -> None:
        self.counters[name] = number


def _made(self: Any, spec: Any, view: memoryview, kind: str, detector: Any = None) -> None:
    self.tier_type, self.locality = kind, None


@contextmanager
def vllm_of(version: str = "0.32.0", **gone: Any) -> Iterator[type]:
    """`LexicoTier` over a vLLM that has what was recorded of it, for the block.

    Args:
        version: that it says it is.
        gone: methods of `SecondaryTierManager` with other parameters than were recorded.
    """
    recorded = json.loads(_supported.INTERFACE.read_text())
    known = recorded["classes"]["SecondaryTierManager"]["methods"]
    namespace: dict[str, Any] = {}
    for name, parameters in {**known, **gone}.items():
        exec(f"def {name}({', '.join(parameters)}): ...", namespace)
    methods = {name: namespace[name] for name in known}
    for name in ("build_metric_definitions",):
        methods[name] = staticmethod(methods[name])
    made = dict(methods)
    base = type("SecondaryTierManager", (), made)
    fields = {
        name: make_dataclass(name, parts)
        for name, parts in recorded["told"].items()
        if name not in ("LookupResult", "JobResult")
    }
    metadata = make_dataclass("Metadata", [("documentation", str), ("labelnames", tuple, ())])
    parts: dict[str, dict[str, Any]] = {
        "vllm": {"__version__": version},
        "vllm.distributed.kv_transfer.kv_connector.v1.metrics": {
            "KVConnectorStats": object,
            "KVConnectorPromMetrics": object,
        },
        "vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics": {
            "OffloadingConnectorStats": Stats
        },
        "vllm.v1.kv_offload.base": {
            "Locality": enum.Enum("Locality", {"LOCAL": "LOCAL", "REMOTE": "REMOTE"}),
            "LookupResult": enum.Enum("LookupResult", recorded["told"]["LookupResult"]),
            "Medium": enum.Enum("Medium", ["CPU", "STORAGE"]),
            "OffloadingCounterMetadata": metadata,
            "OffloadingGaugeMetadata": metadata,
            "RequestOffloadingContext": SimpleNamespace,
        },
        "vllm.v1.kv_offload.config": fields,
        "vllm.v1.kv_offload.tiering.base": {
            "JobResult": JobResult,
            "SecondaryTierManager": base,
            "TransferJob": fields["TransferJob"],
        },
        "vllm.v1.metrics.cache_hit_source": {
            "CacheHitSource": enum.Enum("CacheHitSource", ["EXTERNAL_UNSPECIFIED"])
        },
    }
    fakes: dict[str, ModuleType] = {}
    for name, attributes in parts.items():
        module = fakes[name] = ModuleType(name)
        vars(module).update(attributes)
    before = {name: sys.modules.get(name) for name in (*fakes, MANAGER, STATS)}
    sys.modules.update(fakes)
    for name in (MANAGER, STATS):
        sys.modules.pop(name, None)
    try:
        found = importlib.import_module(MANAGER).LexicoTier
        base.__init__ = _made  # type: ignore[misc]
        yield found
    finally:
        for name, old in before.items():
            sys.modules.pop(name, None)
            if old is not None:
                sys.modules[name] = old
