"""A plug-in of pytest that runs vLLM's own tests with our connectors and our tier in the place of
its own: `-p vllm_own`, in the environment that has vLLM.

Nothing of vLLM's tests is changed or copied into this tree. They name a connector or a tier, or
have one made by a class of their modules; ours is put in the place of those:

- `MockKVConnector`, `NixlConnector` and `ExampleConnector` are `LexicoConnector`;
- `OffloadingConnector` is `LexicoOffloadingConnector`;
- the tiers `fs` and `example` are `LexicoTier`, before the service of `LEXICO_OWN`.

A test in which none of ours was made counts as skipped. What is left out, and why, is in
`LEFT_OUT`.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any, Final

import pytest
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.v1.kv_offload.tiering.example import manager as example
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

from .connector import MADE, REGISTERED, asked_for
from .connector import NAMES as CONNECTORS
from .tier import NAMES as TIERS
from .tier import OwnTier

_AGAIN: Final = "the same"
_WITHIN: Final = "ours loads between steps, not within one"
_HYBRID: Final = "hybrid models are refused"
_OTHERS: Final = "of other connectors"
_FILES: Final = "of the files of `fs`"
LEFT_OUT: Final[dict[str, dict[str, str]]] = {
    "test_remote_prefill_lifecycle.py": {
        "test_basic_lifecycle": "Nixl promises a part of a block",
        "test_full_block_prompt": "ours computes a prompt's last block, as vLLM does with its own",
        "mamba": _HYBRID,
        "promotion_margin": "drafters are refused",
    },
    "test_kv_load_failure_recovery.py": {
        "test_failed_receive_completion": "ours names blocks that failed, not requests",
        "test_block_level_load_failure": _HYBRID,
    },
    "test_multi_connector.py": {
        "test_multi_example_connector_consistency": "it compares files of ExampleConnector",
        "TestMultiConnectorStats": _OTHERS,
    },
    "test_scheduler.py": {
        "ec_connector": "its model takes pictures",
        "ec_consumer": _AGAIN,
        "test_throttle_prefills_excludes_fully": "ours computes a prompt's last block",
        "test_has_sync_kv_loads": "the test says what the connector answers",
        "test_kv_connector_honors_skip_reading": _WITHIN,
        "test_kv_connector_unable_to_allocate": _WITHIN,
        "test_kv_connector_basic[False]": _WITHIN,
        "test_kv_connector_records_external_cache_hit_sources[False]": _WITHIN,
        "test_external_prefix_cache_metrics[False-": "it promises a part of a block",
        "test_external_prefix_cache_metrics[True-False]": _WITHIN,
        "test_kv_connector_handles_preemption[False-None-False": _WITHIN,
        "test_spec_decode_padding": _WITHIN,
        "test_hybrid_": _HYBRID,
    },
    "test_async_scheduler.py": {
        "test_requires_kv_delivery_defaults": "what ours stores may be dropped",
        "test_kv_pressure_preempt_mid_handoff[kv_producer": _AGAIN,
    },
    "test_fs_tier.py": {
        "test_invalid_": "ours refuses its settings in other words",
        "test_shutdown_discards": "of threads of `fs`",
        "o_direct": _FILES,
        "corrupt": _FILES,
        "test_batched_": _FILES,
        "test_transient_load_failure": _FILES,
        "cross_tp": _FILES,
        "event": "ours tells of no events",
    },
    "test_tiering_offloading.py": {
        "test_basic_store_and_lookup": "an answer of ours holds for a request's life, as of `fs`",
        "test_failed_promotion_keeps_only": "it answers in the tier's place",
        "[non_matching_medium]": "of a tier in memory",
        "[explicit_cpu]": _AGAIN,
    },
    "test_factory.py": {
        "test_pre_registered_tiers": "of the names of vLLM's tiers",
        "test_register_new_tier_type": "of a tier in memory",
    },
}
"""File of vLLM's → part of a test's name → why ours is not to pass it."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts ours in the place of vLLM's."""
    for name, ours in REGISTERED.items():
        KVConnectorFactory._registry[name] = lambda ours=ours: asked_for(ours)
    for name in ("fs", "example"):
        SecondaryTierFactory._registry[name] = lambda: asked_for(OwnTier)
    example.ExampleSecondaryTierManager = OwnTier  # by its module's path
    for name, module in list(sys.modules.items()):
        if name.startswith("tests.v1."):
            names = TIERS if name.startswith("tests.v1.kv_offload.") else CONNECTORS
            for each in names.keys() & vars(module).keys():
                setattr(module, each, names[each])
    left = [
        item
        for item in items
        if any(name in item.nodeid for name in LEFT_OUT.get(item.path.name, ()))
    ]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Says so where ours had no part in a test."""
    report = yield
    if not MADE and (call.when == "call" or report.outcome == "failed"):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, "Skipped: ours had no part in it")
    if call.when == "teardown":
        MADE.clear()
    return report
