"""The connector beside another one of vLLM's `MultiConnector` that loses what it promised."""

from __future__ import annotations

from lexico_codec.spec import CacheSpec
from tests.support.engine_prompts import Prompts
from tests.support.vllm_engine import Nursery, connector_fields
from tests.support.vllm_service import EngineService
from tests.support.waiting import PATIENCE_S
from tests.vllm.conftest import LOADED

FAULTY = {
    "kv_connector": "Faulty",
    "kv_connector_module_path": "tests.support.vllm_faulty",
    "kv_role": "kv_both",
}


def test_of_what_another_lost_within_a_step_nothing_is_stored(
    nursery: Nursery,
    prompts: Prompts,
    plain: list[list[int]],
    spec: CacheSpec,
    fresh: EngineService,
) -> None:
    """The step goes on from blocks that hold anything, and its pages would be another prompt's."""
    ours = {**fresh.settings, "codec": "lossless", "drain_seconds": PATIENCE_S}
    both = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": [FAULTY, connector_fields(ours)]},
    }
    lost, whole = prompts.apart[:2]
    with nursery.engine(kv_transfer_config=both) as engine:
        found = [engine.generate(ids) for ids in (lost, whole)]
        assert [each.tokens[0] for each in found] == plain[:2]
    assert [fresh.stored(spec, ids) for ids in (lost, whole)] == [0, 9]
    with nursery.engine(ours) as engine:
        found = [engine.generate(ids) for ids in (lost, whole)]
    assert [each.tokens[0] for each in found] == plain[:2]
    assert [each.cached[0] for each in found] == [0, LOADED]
