"""A real SGLang engine on the CPU: what one process stored another loads, whatever breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lexico_client import Client, fingerprint_files
from lexico_client.engines._hashed import hashed_pages
from lexico_client.engines.sglang._storage import SCHEME
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.presets import codec_named
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import SENT_BYTES, STREAMS
from tests.sglang.conftest import STORED, Prompts
from tests.support.client_fixtures import PATIENT, Landing
from tests.support.sglang_engine import PAGE_TOKENS, Engine, Nursery
from tests.support.sglang_hashes import page_hashes
from tests.support.vllm_service import EngineService
from tests.support.waiting import wait_until

SHORT: Final = {"match_seconds": 10.0, "load_seconds": 30.0, "idle_seconds": 10.0}
"""Deadlines that pass."""


@pytest.fixture(scope="module")
def engine(nursery: Nursery, service: EngineService, stored: None) -> Iterator[Engine]:
    """Another process, which computed nothing."""
    with nursery.engine({**service.settings, "codec": "lossless", **SHORT}) as made:
        yield made


@pytest.fixture(autouse=True)
def cleared(engine: Engine, service: EngineService) -> Iterator[None]:
    engine.flush()
    yield
    service.reload.delay_s = 0.0


def hits_again(engine: Engine, ids: list[int]) -> None:
    """Waits until the service is known to be back."""

    def hit() -> bool:
        engine.flush()
        return engine.generate(ids, max_tokens=1).details[0].get("storage") == STORED

    wait_until(hit, "a hit")


def test_another_process_loads_what_one_stored(
    engine: Engine, prompts: Prompts, plain: list[list[int]]
) -> None:
    for ids, tokens in zip(prompts.apart, plain, strict=False):
        found = engine.generate(ids)
        assert (found.tokens[0], found.details[0]["storage"]) == (tokens, STORED)
    again = engine.generate(prompts.apart[0])  # SGLang has it now
    assert (again.tokens[0], again.details[0].get("storage", 0)) == (plain[0], 0)
    shown = engine.shown()
    assert shown["lexico_engine_tokens_total loaded"] >= 2 * STORED
    assert shown["lexico_engine_requests_total hit"] >= 2


def test_a_beginning_that_is_stored_is_loaded(
    engine: Engine, prompts: Prompts, nursery: Nursery
) -> None:
    """Five pages, and then what nobody has; and what goes on after pages that SGLang has itself."""
    ids = prompts.branch(5 * PAGE_TOKENS, 1)
    found = engine.generate(ids)
    assert found.details[0]["storage"] == 5 * PAGE_TOKENS
    engine.flush()
    assert engine.generate(ids).tokens == found.tokens
    engine.flush()
    short = prompts.apart[0][: 5 * PAGE_TOKENS + 1]
    assert engine.generate(short, max_tokens=1).details[0]["storage"] == 5 * PAGE_TOKENS
    whole = engine.generate(prompts.apart[0])
    assert whole.details[0]["storage"] == STORED - 5 * PAGE_TOKENS


def test_prompts_that_come_at_once(
    engine: Engine, prompts: Prompts, plain: list[list[int]]
) -> None:
    found = engine.generate(*prompts.apart)
    assert found.tokens == plain[:2]
    assert [each["storage"] for each in found.details] == [STORED] * 2


def test_pages_in_the_store_are_those_of_hugging_face(
    service: EngineService, prompts: Prompts, model: Path, stored: None
) -> None:
    """What the engine keeps is read as keys and values, and not as something else that comes back
    the same. Each page is found by its hash, as a sequence of its own."""
    ids = prompts.apart[1]
    with torch.inference_mode():
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        layers = network(torch.tensor([ids]), use_cache=True).past_key_values.layers
    spec = stored_spec(model)
    names = page_hashes(ids, PAGE_TOKENS)
    with Client(reload=service.settings["reload"], timeouts=PATIENT) as client:
        for page, name in enumerate(names):
            zeros, inputs = hashed_pages(SCHEME, [name], PAGE_TOKENS)
            landing = Landing(spec)
            assert client.load(spec, zeros, landing, inputs=inputs).pages == 1
            tokens = slice(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)
            for layer, found in zip(layers, landing.cache, strict=True):
                for part, whole in zip(found, (layer.keys, layer.values), strict=True):
                    expected = whole[0, :, tokens].transpose(0, 1)
                    torch.testing.assert_close(part, expected, atol=2e-3, rtol=1e-3)


def stored_spec(model: Path) -> CacheSpec:
    """What pages of an engine with codec lossless belong to."""
    geometry = geometry_of(AutoConfig.from_pretrained(model), "float32")
    return CacheSpec(
        weights=fingerprint_files(model),
        geometry=replace(geometry, rope=None),
        codec=codec_named("lossless"),
        page_tokens=PAGE_TOKENS,
    )


def test_requests_with_a_salt_are_apart(
    engine: Engine, prompts: Prompts, plain: list[list[int]]
) -> None:
    found = engine.generate(prompts.apart[0], cache_salt="mine")
    assert (found.tokens[0], found.cached) == (plain[0], [0])


def test_a_service_that_is_gone_costs_nothing_but_the_hit(
    engine: Engine,
    service: EngineService,
    prompts: Prompts,
    plain: list[list[int]],
    nursery: Nursery,
) -> None:
    service.reload.refuse()
    service.offload.refuse()
    try:
        found = engine.generate(*prompts.apart, prompts.spare[0])
        assert (found.tokens, found.cached) == (plain, [0] * 3)
    finally:
        service.reload.accept()
        service.offload.accept()
    assert nursery.said().count("match failed, the engine computes by itself") == 1
    hits_again(engine, prompts.apart[1])


def test_a_service_that_dies_in_the_middle_of_a_load(
    engine: Engine, service: EngineService, prompts: Prompts, plain: list[list[int]]
) -> None:
    sent = service.counts(SENT_BYTES)
    service.reload.delay_s = 0.02
    engine.begin(prompts.apart[0])
    wait_until(lambda: service.counts(STREAMS) or service.counts(SENT_BYTES) != sent, "a load")
    service.reload.refuse()
    found = engine.result()
    service.reload.accept()
    assert (found.tokens[0], found.reasons) == (plain[0], ["length"])
    assert found.details[0].get("storage", 0) < STORED
    service.reload.delay_s = 0.0
    hits_again(engine, prompts.apart[0])


def test_a_damaged_page_is_computed(
    engine: Engine, service: EngineService, prompts: Prompts, plain: list[list[int]], model: Path
) -> None:
    """It leaves the store, and is stored anew."""
    zeros, inputs = hashed_pages(
        SCHEME, [page_hashes(prompts.apart[0], PAGE_TOKENS)[4]], PAGE_TOKENS
    )
    service.damage(stored_spec(model), zeros.tolist(), 0, inputs)
    found = engine.generate(prompts.apart[0])
    assert (found.tokens[0], found.reasons) == (plain[0], ["length"])
    assert found.details[0].get("storage", 0) == 4 * PAGE_TOKENS
    hits_again(engine, prompts.apart[0])
