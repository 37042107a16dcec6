"""LMCache's server and vLLM on the CPU: what one server stored, another loads from the service."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from lexico_codec.frame import parse_frame
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.pages import decode_group
from lexico_codec.spec import make_spec
from lexico_proto.metrics import ENGINE_REQUESTS, ENGINE_TOKENS
from tests.lmcache.conftest import CHUNKS, LOADED
from tests.support.engine_prompts import SHARED, Plain, Prompts
from tests.support.lmcache_pairs import Pair
from tests.support.lmcache_server import CHUNK_TOKENS, SENT
from tests.support.vllm_service import EngineService

HIT = f"{ENGINE_REQUESTS.name} hit"
FOUND, LOST = (f"{ENGINE_TOKENS.name} {what}" for what in ("loaded", "lost"))


def test_pages_in_the_store_are_the_keys_and_values_of_hugging_face(
    service: EngineService, prompts: Prompts, model: Path, stored: set[str]
) -> None:
    """A lossless codec does not notice a layout that is read wrong."""
    found = _pages(service, model, stored)
    assert len(found) == len(prompts.apart) * CHUNKS
    with torch.inference_mode():
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        for ids in prompts.apart:
            layers = network(torch.tensor([ids]), use_cache=True).past_key_values.layers
            cache = torch.stack([torch.stack([each.keys[0], each.values[0]]) for each in layers])
            for chunk in cache[..., :LOADED, :].transpose(2, 3).split(CHUNK_TOKENS, dim=2):
                close = [torch.allclose(each, chunk, atol=2e-3, rtol=1e-3) for each in found]
                assert close.count(True) == 1
                del found[close.index(True)]
    assert not found


def test_another_server_loads_what_one_stored(pair: Pair, prompts: Prompts, plain: Plain) -> None:
    before = pair.server.counts()
    found = [pair.engine.generate(ids) for ids in prompts.apart]
    assert [each.tokens[0] for each in found] == plain.apart
    assert [each.cached[0] for each in found] == [LOADED] * len(found)
    changes = pair.server.counts() - before
    assert (changes[FOUND], changes[LOST]) == (len(found) * LOADED, 0)
    assert changes[HIT] == len(found)


def test_a_prompt_that_begins_alike_loads_its_beginning(
    pair: Pair, prompts: Prompts, plain: Plain
) -> None:
    """Five chunks, and then what nobody has. LMCache keeps what its engine computed, and not what
    it loaded."""
    ids, before = prompts.branch(SHARED, 4), pair.server.counts()
    found = pair.engine.generate(ids)
    assert found.cached == [SHARED]
    pair.server.stored(sent=before[SENT] + CHUNKS - SHARED // CHUNK_TOKENS)
    for loaded in (SHARED, LOADED):
        before = pair.server.counts()
        again = pair.engine.generate(ids)
        assert (again.tokens, again.cached) == (found.tokens, [LOADED])
        assert (pair.server.counts() - before)[FOUND] == loaded
        pair.forget()
    short = pair.engine.generate(prompts.apart[0][: SHARED + 1], max_tokens=1)
    assert short.cached == [SHARED]
    whole = pair.engine.generate(prompts.apart[0])
    assert (whole.tokens[0], whole.cached) == (plain.apart[0], [LOADED])


def test_prompts_that_come_at_once(pair: Pair, prompts: Prompts, plain: Plain) -> None:
    before = pair.server.counts()
    found = pair.engine.generate(*prompts.apart)
    assert (found.tokens, found.cached) == (plain.apart, [LOADED] * len(plain.apart))
    assert (pair.server.counts() - before)[FOUND] == len(plain.apart) * LOADED


def _pages(service: EngineService, model: Path, names: Iterable[str]) -> list[Tensor]:
    """What is in the store, by what its frames say of themselves."""
    found = []
    for entry in map(service.store._pages.__getitem__, names):
        first = parse_frame(entry.frames[0])[0]
        spec = make_spec(
            weights=bytes(32),
            geometry=geometry_of(AutoConfig.from_pretrained(model), first.dtype),
            codec="lossless",
            page_tokens=first.tokens,
            group_layers=first.layers,
        )
        page = torch.empty((spec.geometry.layers, 2, first.tokens, first.kv_heads, first.head_dim))
        for group, frame in enumerate(entry.frames):
            layers = spec.group_range(group)
            out = page[layers.start : layers.stop]
            decode_group(spec, first.page_key, 0, group, frame, out)
        found.append(page)
    return found
