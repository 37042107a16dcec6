"""vLLM's own tiering manager with our secondary tier: what one process stored, another loads."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pickle
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from transformers import AutoModelForCausalLM

from lexico_client import AsyncClient
from lexico_client.engines._apart import PagesApart
from lexico_client.engines._hashed import hashed_pages
from lexico_codec.memory import CacheMemory
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import ENGINE_PAGES, ENGINE_REQUESTS, ENGINE_STAGED, ENGINE_TOKENS
from tests.support.client_fixtures import PATIENT
from tests.support.engine_prompts import Prompts
from tests.support.saved_model import save_tiny
from tests.support.vllm_engine import (
    BLOCK_TOKENS,
    MODULE,
    PYTHON,
    ROOT,
    Engine,
    EngineFailed,
    Nursery,
)
from tests.support.vllm_service import EngineService
from tests.vllm.conftest import LOADED

CHUNK: Final = 64
SCHEME: Final = "vllm-tier"


def transfer(service: EngineService, connector: str = "LexicoOffloadingConnector") -> Any:
    """`kv_transfer_config` of an engine with the tier."""
    tier = {"type": "LexicoTier", "module_path": MODULE, "codec": "lossless", **service.settings}
    ours = {} if connector == "OffloadingConnector" else {"kv_connector_module_path": MODULE}
    return {
        "kv_connector": connector,
        **ours,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "CPUTieringSpec",
            "spec_module_path": "tests.support.vllm_cpu_tiering",
            "cpu_bytes_to_use": 256 << 20,
            "block_size": CHUNK,
            "secondary_tiers": [tier],
        },
    }


def settle(engine: Engine) -> None:
    assert engine.call("tests.support.vllm_cpu_tiering:settle")["settled"]


def requests(engine: Engine) -> dict[str, int]:
    """Outcomes of requests. vLLM tells its tiers that one has ended in a step behind its last job:
    a prompt that fills no chunk makes it step."""
    engine.generate(range(1, CHUNK // 2))
    return engine.counted(ENGINE_REQUESTS.name)


def chunk_hashes(token_ids: Sequence[int]) -> list[bytes]:
    """As vLLM makes them by default: SHA-256 over a pickle, of the last block of each chunk."""

    def hashed(what: object) -> bytes:
        return hashlib.sha256(pickle.dumps(what, pickle.HIGHEST_PROTOCOL)).digest()

    found, before = [], hashed("vllm-none-hash")
    for first in range(0, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        before = hashed((before, tuple(token_ids[first : first + BLOCK_TOKENS]), None))
        found.append(before)
    return found[CHUNK // BLOCK_TOKENS - 1 :: CHUNK // BLOCK_TOKENS]


@pytest.fixture(scope="module")
def base(spec: CacheSpec) -> CacheSpec:
    """What chunks belong to."""
    return replace(spec, page_tokens=CHUNK)


@pytest.fixture(scope="module")
def stored(
    nursery: Nursery, service: EngineService, prompts: Prompts, plain: list[list[int]]
) -> None:
    """A process computed and stored two prompts."""
    with nursery.engine(kv_transfer_config=transfer(service)) as engine:
        assert [engine.generate(ids).tokens[0] for ids in prompts.apart[:2]] == plain[:2]
        settle(engine)
        assert engine.counted(ENGINE_PAGES.name)["sent"] == 18
        assert requests(engine) == {"miss": 2}
        assert engine.counted(ENGINE_STAGED.name) == {"": 0}
    assert "layout=vllm-cpu" in nursery.said()


@pytest.fixture(scope="module")
def second(nursery: Nursery, service: EngineService, stored: None) -> Iterator[Engine]:
    """Another process, with nothing in its memory."""
    with nursery.engine(kv_transfer_config=transfer(service)) as made:
        yield made


def test_chunks_in_the_store_are_keys_and_values_of_hugging_face(
    service: EngineService, prompts: Prompts, base: CacheSpec, model: Path, stored: None
) -> None:
    """As they are stored, after RoPE, and not something else that comes back the same."""
    ids, geometry = prompts.apart[0], base.geometry
    with torch.inference_mode():
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        layers = network(torch.tensor([ids]), use_cache=True).past_key_values.layers
    room = torch.empty(geometry.layers, 2, CHUNK, geometry.kv_heads, geometry.head_dim)

    async def loaded(page_hash: bytes) -> torch.Tensor:
        async with AsyncClient(reload=service.settings["reload"], timeouts=PATIENT) as client:
            memory = CacheMemory.over(room)
            found = await PagesApart(client, SCHEME).load(base, page_hash, memory, 60.0)
            assert found.pages == 1, found.reason
        return room

    for page, page_hash in enumerate(chunk_hashes(ids)):
        chunk = asyncio.run(loaded(page_hash))
        for layer, found in zip(layers, chunk, strict=True):
            for part, whole in zip(found, (layer.keys, layer.values), strict=True):
                expected = whole[0, :, page * CHUNK : (page + 1) * CHUNK].transpose(0, 1)
                torch.testing.assert_close(part, expected, atol=2e-3, rtol=1e-3)


def test_an_engine_that_tells_the_tier_nothing_is_refused_in_one_line(
    nursery: Nursery, service: EngineService
) -> None:
    with (
        pytest.raises(EngineFailed, match="LexicoOffloadingConnector"),
        nursery.engine(kv_transfer_config=transfer(service, "OffloadingConnector")),
    ):
        pytest.fail("the engine started")


def test_another_process_loads_what_one_stored(
    second: Engine, prompts: Prompts, plain: list[list[int]]
) -> None:
    found = second.generate(prompts.apart[0])
    assert (found.tokens[0], found.cached[0]) == (plain[0], LOADED)
    assert requests(second) == {"hit": 1}
    tokens = second.counted(ENGINE_TOKENS.name)
    assert (tokens["loaded"], tokens.get("lost", 0)) == (LOADED, 0)
    assert second.own()["vllm:external_prefix_cache_hits"] == LOADED
    assert second.shown()["lexico_engine_tokens_total loaded"] == LOADED


def test_a_damaged_chunk_is_computed(
    second: Engine,
    service: EngineService,
    prompts: Prompts,
    plain: list[list[int]],
    base: CacheSpec,
) -> None:
    """The chunks before it are used."""
    ids, inputs = hashed_pages(SCHEME, chunk_hashes(prompts.apart[1])[4:5], CHUNK)
    service.damage(base, ids.tolist(), 0, inputs)
    before = second.counted(ENGINE_TOKENS.name)
    found = second.generate(prompts.apart[1])
    assert (found.tokens[0], found.cached[0]) == (plain[1], 4 * CHUNK)
    after = second.counted(ENGINE_TOKENS.name)
    assert after["lost"] - before.get("lost", 0) >= CHUNK


def test_a_service_that_is_gone_costs_nothing_but_the_hit(
    second: Engine, service: EngineService, prompts: Prompts, plain: list[list[int]]
) -> None:
    before = requests(second).get("failed", 0)
    service.reload.refuse()
    service.offload.refuse()
    try:
        found = second.generate(prompts.apart[2])
        settle(second)
    finally:
        service.reload.accept()
        service.offload.accept()
    assert (found.tokens[0], found.cached[0]) == (plain[2], 0)
    assert requests(second)["failed"] == before + 1
    assert second.counted(ENGINE_STAGED.name) == {"": 0}


def test_after_a_reset_nothing_is_found_that_was_stored_before(
    second: Engine, prompts: Prompts, plain: list[list[int]]
) -> None:
    second.reset(reset_connector=True)
    found = second.generate(prompts.apart[0])
    assert (found.tokens[0], found.cached[0]) == (plain[0], 0)


def test_two_managers_of_vllm_share(service: EngineService, tmp_path: Path) -> None:
    """Without an engine: their whole contract with the tier, and their end."""
    tier = {
        "type": "LexicoTier",
        "module_path": MODULE,
        "codec": "lossless",
        "weights": "ab" * 32,
        "layout": "heads-first",
        **service.settings,
    }
    given = json.dumps({"model": str(save_tiny(tmp_path)), "tier": tier})
    path = ":".join(map(str, (ROOT, ROOT / "proto", ROOT / "client")))
    ended = subprocess.run(
        [PYTHON, "-m", "tests.support.vllm_tier_managers", given],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["said"] == ["HIT"] * 3 + ["MISS"]
    assert found["equal"]
    assert found["after_reset"] == "MISS"
    assert any(name.startswith("lexico_engine_tokens_total") for name in found["shown"])
    assert "Failed to" not in ended.stderr
