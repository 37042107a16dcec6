"""A real SGLang engine on the CPU: what one process stored another loads, and goes on from."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from lexico_client import Client
from lexico_client.engines._hashed import hashed_pages
from lexico_client.engines.sglang._storage import SCHEME
from lexico_codec.spec import CacheSpec
from tests.sglang.conftest import STORED
from tests.support.client_fixtures import PATIENT, Landing
from tests.support.engine_prompts import Plain, Prompts
from tests.support.sglang_engine import PAGE_TOKENS, Engine
from tests.support.sglang_hashes import page_hashes
from tests.support.vllm_service import EngineService


def test_another_process_loads_what_one_stored(
    engine: Engine, prompts: Prompts, plain: Plain
) -> None:
    for ids, tokens in zip(prompts.apart, plain.apart, strict=True):
        found = engine.generate(ids)
        assert (found.tokens[0], found.loaded[0]) == (tokens, STORED)
    again = engine.generate(prompts.apart[0])  # SGLang has it now
    assert (again.tokens[0], again.loaded[0]) == (plain.apart[0], 0)
    shown = engine.shown()
    assert shown["lexico_engine_tokens_total loaded"] >= 2 * STORED
    assert shown["lexico_engine_requests_total hit"] >= 2


def test_a_beginning_that_is_stored_is_loaded(engine: Engine, prompts: Prompts) -> None:
    """Five pages, and then what nobody has; and what goes on after pages that SGLang has itself."""
    ids = prompts.branch(5 * PAGE_TOKENS, 5)
    found = engine.generate(ids)
    assert found.loaded[0] == 5 * PAGE_TOKENS
    engine.flush()
    assert engine.generate(ids).tokens == found.tokens
    engine.flush()
    short = prompts.apart[0][: 5 * PAGE_TOKENS + 1]
    assert engine.generate(short, max_tokens=1).loaded[0] == 5 * PAGE_TOKENS
    whole = engine.generate(prompts.apart[0])
    assert whole.loaded[0] == STORED - 5 * PAGE_TOKENS


def test_prompts_that_come_at_once(engine: Engine, prompts: Prompts, plain: Plain) -> None:
    found = engine.generate(*prompts.apart)
    assert found.tokens == plain.apart
    assert found.loaded == [STORED] * 2


def test_pages_in_the_store_are_those_of_hugging_face(
    service: EngineService, prompts: Prompts, model: Path, spec: CacheSpec, stored: None
) -> None:
    """What the engine keeps is read as keys and values, and not as something else that comes back
    the same. Each page is found by its hash, as a sequence of its own."""
    ids = prompts.apart[1]
    with torch.inference_mode():
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        layers = network(torch.tensor([ids]), use_cache=True).past_key_values.layers
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


def test_requests_with_a_salt_are_apart(engine: Engine, prompts: Prompts, plain: Plain) -> None:
    found = engine.generate(prompts.apart[0], cache_salt="mine")
    assert (found.tokens[0], found.cached) == (plain.apart[0], [0])
