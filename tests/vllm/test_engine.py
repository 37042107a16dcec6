"""A real vLLM engine on the CPU: what one process stored, another loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lexico_client import Client
from lexico_client.hf import HuggingFaceCache
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import CLIENT_MISSES, ENGINE_PAGES, ENGINE_REQUESTS, ENGINE_TOKENS
from tests.support.client_fixtures import PATIENT, Landing, first_pages
from tests.support.engine_prompts import Prompts
from tests.support.vllm_engine import Nursery, connector_fields
from tests.support.vllm_service import EngineService
from tests.support.waiting import PATIENCE_S, wait_until
from tests.vllm.conftest import LOADED

LOSSLESS = {"codec": "lossless"}


@pytest.fixture(scope="module")
def stored(
    nursery: Nursery, service: EngineService, prompts: Prompts, plain: list[list[int]]
) -> None:
    """A process computed and stored every prompt."""
    with nursery.engine({**service.settings, **LOSSLESS}) as engine:
        found = [engine.generate(ids) for ids in prompts.apart]
        engine.settle()
        assert [each.tokens[0] for each in found] == plain
        assert engine.counted(ENGINE_PAGES.name)["sent"] == 9 * len(found)
        assert engine.counted(ENGINE_REQUESTS.name) == {"miss": len(found)}


def test_pages_in_the_store_are_those_of_hugging_face(
    service: EngineService, prompts: Prompts, spec: CacheSpec, model: Path, stored: None
) -> None:
    """What the engine keeps is read as keys and values, and not as something else that comes back
    the same."""
    ids = prompts.apart[0]
    with torch.inference_mode():
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        layers = network(torch.tensor([ids]), use_cache=True).past_key_values.layers
    landing = Landing(spec)
    with Client(reload=service.settings["reload"], timeouts=PATIENT) as client:
        assert client.load(spec, ids, landing).tokens == LOADED
    for layer, found in zip(layers, first_pages(landing.cache, spec, 9), strict=True):
        for part, whole in zip(found, (layer.keys, layer.values), strict=True):
            expected = whole[0, :, :LOADED].transpose(0, 1)
            torch.testing.assert_close(part, expected, atol=2e-3, rtol=1e-3)


def test_another_process_loads_what_one_stored(
    nursery: Nursery,
    service: EngineService,
    prompts: Prompts,
    plain: list[list[int]],
    stored: None,
) -> None:
    with nursery.engine({**service.settings, **LOSSLESS}) as engine:
        found = [engine.generate(ids) for ids in prompts.apart]
        assert [each.tokens[0] for each in found] == plain
        assert [each.cached[0] for each in found] == [LOADED] * len(found)
        assert engine.counted(ENGINE_REQUESTS.name) == {"hit": len(found)}
        assert engine.counted(ENGINE_TOKENS.name)["loaded"] == LOADED * len(found)
        assert not any(engine.counted(CLIENT_MISSES.name).values())
        assert engine.own()["vllm:external_prefix_cache_hits"] == LOADED * len(found)
        assert engine.shown()["lexico_engine_requests_total hit"] == len(found)
        again = engine.generate(prompts.apart[0])  # vLLM has it now, and asks for nothing
        assert (again.tokens[0], again.cached[0]) == (plain[0], LOADED)
        assert engine.counted(ENGINE_REQUESTS.name) == {"hit": len(found), "local": 1}


def test_a_hugging_face_node_and_vllm_share(
    nursery: Nursery,
    prompts: Prompts,
    plain: list[list[int]],
    model: Path,
    fresh: EngineService,
) -> None:
    ids = prompts.apart[0]
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    addresses = fresh.settings
    with (
        torch.inference_mode(),
        Client(
            reload=addresses["reload"], offload=addresses["offload"], timeouts=PATIENT
        ) as client,
    ):
        shared = HuggingFaceCache(client, network, codec="lossless")
        cache = network(torch.tensor([ids]), use_cache=True).past_key_values
        shared.offload(ids, cache)
    with nursery.engine({**addresses, **LOSSLESS}) as engine:
        found = engine.generate(ids)
        assert (found.tokens[0], found.cached[0]) == (plain[0], LOADED)


def test_two_connectors_in_one_engine(
    nursery: Nursery,
    service: EngineService,
    prompts: Prompts,
    plain: list[list[int]],
    spec: CacheSpec,
    stored: None,
) -> None:
    """vLLM's own `MultiConnector`: it loads from the first that finds any, and all store."""
    salts, ids = ("another", ""), prompts.apart[0]
    ours = [connector_fields({**service.settings, **LOSSLESS, "salt": salt}) for salt in salts]
    both = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": ours},
    }
    with nursery.engine(kv_transfer_config=both) as engine:
        found = engine.generate(ids)
        assert (found.tokens, found.cached) == (plain[:1], [LOADED])
        assert engine.counted(ENGINE_REQUESTS.name) == {"miss": 1, "hit": 1}
        other = replace(spec, salt=salts[0])
        wait_until(lambda: service.stored(other, ids) == 9, "the one that found nothing to store")


def test_an_engine_that_ends_stores_what_it_computed(
    nursery: Nursery,
    prompts: Prompts,
    plain: list[list[int]],
    spec: CacheSpec,
    fresh: EngineService,
) -> None:
    """Nobody waits for it before: what is on its way has `drain_seconds`."""
    fresh.offload.upload_delay_s = 0.005
    settings = {**fresh.settings, **LOSSLESS, "drain_seconds": PATIENCE_S}
    with nursery.engine(settings) as engine:
        assert engine.generate(prompts.apart[0]).tokens == plain[:1]
    assert fresh.stored(spec, prompts.apart[0]) == 9


def test_what_cannot_be_used_is_said_in_one_line_at_start(
    nursery: Nursery, service: EngineService
) -> None:
    here = service.settings
    for connector, options, said in (
        ({**here, "codek": "near"}, {}, "codek: unknown"),
        ({**here, "codec": "lossless"}, {"policy": "fail"}, "kv_load_failure_policy"),
    ):
        refused = nursery.refusal(connector, **options)
        assert said in refused
