"""LMCache's server and vLLM on the CPU: what one server stored, another loads from the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lexico_codec.frame import parse_frame
from lexico_codec.geometry import Geometry
from lexico_codec.pages import decode_group
from lexico_codec.spec import make_spec
from lexico_proto.metrics import ENGINE_TOKENS
from tests.lmcache.conftest import LAYOUT, LOADED, Running, Start, forget, plugin
from tests.support.client_fixtures import flipped
from tests.support.lmcache_server import CHUNK_TOKENS, MODULE
from tests.support.vllm_service import EngineService
from tests.support.waiting import wait_until

CHUNKS = LOADED // CHUNK_TOKENS


@pytest.fixture(scope="module")
def plain(start: Start, service: EngineService, prompts: list[list[int]]) -> list[list[int]]:
    """The tokens of every prompt, of an engine that computed all of them; its server stored all but
    the last."""
    with start(plugin(service)) as (server, engine):
        found = [engine.generate(ids) for ids in prompts[:3]]
        server.stored(sent=3 * CHUNKS)
        service.offload.refuse()
        service.reload.refuse()
        forget(server)
        found.append(engine.generate(prompts[3]))
        server.settle()
        service.reload.accept()
        service.offload.accept()
        assert [each.cached for each in found] == [[0]] * 4
        return [each.tokens[0] for each in found]


@pytest.fixture(scope="module")
def running(start: Start, service: EngineService, plain: list[list[int]]) -> Iterator[Running]:
    """Another server, which has nothing in its memory, and another engine."""
    with start(plugin(service)) as made:
        yield made


@pytest.fixture
def fresh(running: Running) -> Running:
    """With nothing in the memory of the server."""
    forget(running[0])
    return running


def test_pages_in_the_store_are_the_keys_and_values_of_hugging_face(
    service: EngineService, prompts: list[list[int]], model: Path, plain: list[list[int]]
) -> None:
    """A lossless codec does not notice a layout that is read wrong."""
    found = _pages(service)
    assert len(found) == 3 * CHUNKS
    with torch.inference_mode():
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        for ids in prompts[:3]:
            layers = network(torch.tensor([ids]), use_cache=True).past_key_values.layers
            cache = torch.stack([torch.stack([each.keys[0], each.values[0]]) for each in layers])
            for chunk in cache[..., :LOADED, :].transpose(2, 3).split(CHUNK_TOKENS, dim=2):
                close = [torch.allclose(each, chunk, atol=2e-3, rtol=1e-3) for each in found]
                assert close.count(True) == 1
                del found[close.index(True)]
    assert not found


def test_a_server_that_was_restarted_loads_what_another_stored(
    fresh: Running, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    server, engine = fresh
    before = server.counted(ENGINE_TOKENS.name)
    found = [engine.generate(ids) for ids in prompts[:3]]
    assert [each.tokens[0] for each in found] == plain[:3]
    assert [each.cached[0] for each in found] == [LOADED] * 3
    after = server.counted(ENGINE_TOKENS.name)
    assert after["loaded"] - before.get("loaded", 0) == 3 * LOADED
    assert after.get("lost", 0) == before.get("lost", 0)


def test_a_prompt_that_begins_alike_loads_its_beginning(
    fresh: Running, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    server, engine = fresh
    found = engine.generate(prompts[3])
    assert (found.tokens[0], found.cached[0]) == (plain[3], 4 * CHUNK_TOKENS)
    server.stored(sent=CHUNKS - 4)
    forget(server)
    again = engine.generate(prompts[3])  # its own chunks were stored
    assert (again.tokens[0], again.cached[0]) == (plain[3], LOADED)


def test_a_damaged_object_is_computed(
    fresh: Running,
    service: EngineService,
    prompts: list[list[int]],
    plain: list[list[int]],
) -> None:
    server, engine = fresh
    whole = dict(service.store._pages)
    for name, entry in whole.items():
        frames = (*entry.frames[:-1], flipped(entry.frames[-1]))
        service.store._pages[name] = type(entry)(frames, entry.expires_s)
    found = engine.generate(prompts[1])
    assert (found.tokens[0], found.reasons) == (plain[1], ["length"])
    assert server.counted(ENGINE_TOKENS.name)["lost"] > 0
    service.store._pages.update(whole)


def test_a_service_that_is_gone_costs_nothing_but_the_hit(
    fresh: Running,
    service: EngineService,
    prompts: list[list[int]],
    plain: list[list[int]],
) -> None:
    server, engine = fresh
    service.reload.refuse()
    service.offload.refuse()
    try:
        found = [engine.generate(ids) for ids in prompts]
        server.settle()
    finally:
        service.reload.accept()
        service.offload.accept()
    assert [each.tokens[0] for each in found] == plain
    assert found[1].cached == [0]
    warned = [line for line in server.said().splitlines() if "match failed" in line]
    assert warned

    def hit() -> bool:
        forget(server)
        return engine.generate(prompts[2], max_tokens=1).cached == [LOADED]

    wait_until(hit, "a hit", every_s=1.0)


def test_the_serde_codes_for_an_adapter_of_lmcaches_own(
    start: Start, prompts: list[list[int]], plain: list[list[int]], tmp_path: Path
) -> None:
    adapter = {
        "type": "plugin",
        "module_path": MODULE,
        "class_name": "LMCacheAdapter",
        "adapter_params": {"type": "fs", "base_path": str(tmp_path)},
        "serde": {"type": "lexico", **LAYOUT, "padded_to": 0.9},
    }
    for round in range(2):
        with start(adapter) as (server, engine):
            found = engine.generate(prompts[0])
            assert (found.tokens[0], found.cached[0]) == (plain[0], round * LOADED)
            wait_until(lambda: len(list(tmp_path.glob("*.data"))) == CHUNKS, "objects in files")
            assert "Serde task" not in server.said()
    raw = 30 * 2 * CHUNK_TOKENS * 3 * 64 * 4
    assert {file.stat().st_size for file in tmp_path.glob("*.data")} == {int(0.9 * raw)}


def _pages(service: EngineService) -> list[Tensor]:
    """What is in the store, by what its frames say of themselves."""
    found = []
    for entry in service.store._pages.values():
        first, last = (parse_frame(frame)[0] for frame in (entry.frames[0], entry.frames[-1]))
        spec = make_spec(
            weights=bytes(32),
            geometry=Geometry(
                last.first_layer + last.layers, first.kv_heads, first.head_dim, first.dtype
            ),
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
