"""An engine whose cache is in FP8, which LMCache has as bytes: what one server stored, another
loads from the service, once the type is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.lmcache.conftest import CHUNKS, LOADED, plugin
from tests.support.engine_prompts import Prompts
from tests.support.lmcache_pairs import Pairs
from tests.support.lmcache_server import SENT
from tests.support.vllm_service import EngineService

pytestmark = pytest.mark.skipif(
    not torch.cpu._is_avx512_supported(), reason="vLLM's CPU attention has FP8 with AVX-512 alone"
)


def test_bytes_of_a_type_that_is_named_are_shared(
    pairs: Pairs, service: EngineService, model: Path, prompts: Prompts
) -> None:
    ids = prompts.apart[0]
    plain = pairs.alone(kv_cache_dtype="fp8").generate(ids).tokens
    settings = plugin(service, model, cache_dtype="float8_e4m3fn")
    pair = pairs.like(settings, kv_cache_dtype="fp8")
    found = pair.engine.generate(ids)
    assert (found.tokens, found.cached) == (plain, [0])
    pair.server.stored(sent=CHUNKS)
    pair = pairs.again()
    found = pair.engine.generate(ids)
    assert (found.tokens, found.cached) == (plain, [LOADED])


def test_bytes_that_nobody_named_are_left_alone(
    pairs: Pairs, service: EngineService, model: Path, prompts: Prompts
) -> None:
    pair = pairs.like(plugin(service, model), kv_cache_dtype="fp8")
    assert pair.engine.generate(prompts.apart[0]).cached == [0]
    pair.server.settle()
    assert pair.server.counts()[SENT] == 0
    assert "an object of torch.uint8: where engines have caches in FP8" in pair.server.said()
