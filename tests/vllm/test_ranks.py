"""Real engines of two ranks, split by heads or by layers, share pages with one of one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from lexico_client import fingerprint_files
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.presets import codec_named
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import SLICED_PAGES
from tests.support.engine_prompts import TOKENS
from tests.support.vllm_engine import Engine, Nursery
from tests.support.vllm_service import EngineService
from tests.support.waiting import wait_until
from tests.vllm.conftest import LOADED

VOCABULARY: Final = 512
PAGES: Final = 9
WAYS: Final[dict[str, dict[str, Any]]] = {
    "tensor": {"tensor_parallel_size": 2},
    "tensor-fp8": {"tensor_parallel_size": 2, "kv_cache_dtype": "fp8"},
    # Without a compilation vLLM 0.32 has no pipelines on the CPU: the buffers between its stages
    # are made when it warms up, and it does not. The backend compiles nothing.
    "pipeline": {
        "pipeline_parallel_size": 2,
        "enforce_eager": False,
        "compilation_config": {"mode": 2, "backend": "eager"},
    },
}


@pytest.fixture(scope="module")
def split_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose heads two ranks can share: SmolLM2 has three."""
    folder = tmp_path_factory.mktemp("split")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_and_one_share(
    way: str, nursery: Nursery, fresh: EngineService, split_model: Path
) -> None:
    """Two ranks load what one stored, and what they stored themselves in slices."""
    kind = WAYS[way].get("kv_cache_dtype", "auto")
    if kind == "fp8" and not torch.cpu._is_avx512_supported():
        pytest.skip("vLLM's CPU attention has FP8 with AVX-512 alone")
    spec = CacheSpec(
        weights=fingerprint_files(split_model),
        geometry=geometry_of(AutoConfig.from_pretrained(split_model), _DTYPES[kind]),
        codec=codec_named("lossless"),
    )
    connector: dict[str, Any] = {**fresh.settings, "codec": "lossless"}
    options: dict[str, Any] = {"model": str(split_model), "skip_tokenizer_init": True}
    prompts = [_prompt(0), _prompt(1)]

    def computes(engine: Engine, which: int, **more: Any) -> list[int]:
        found = engine.generate(prompts[which], max_tokens=8, **more)
        assert found.cached == [0]
        return found.tokens[0]

    def loads(engine: Engine, which: int) -> list[int]:
        found = engine.generate(prompts[which], max_tokens=8)
        assert found.cached == [LOADED]
        return found.tokens[0]

    def stored(which: int) -> None:
        wait_until(lambda: fresh.stored(spec, prompts[which]) == PAGES, "all pages to be stored")

    with nursery.engine(connector, **options, kv_cache_dtype=kind) as engine:
        expected = [computes(engine, 0)]
        expected += [computes(engine, 1, prompt={"cache_salt": "another namespace"})]
        stored(0)
        engine.settle()
    with nursery.engine(connector, **options, **WAYS[way]) as engine:
        assert [loads(engine, 0), computes(engine, 1)] == expected
        stored(1)
        engine.reset()
        assert [loads(engine, 0), loads(engine, 1)] == expected
    assert fresh.counts(SLICED_PAGES) == {("whole",): PAGES}


_DTYPES: Final = {"auto": "float32", "fp8": "float8_e4m3fn"}
"""`kv_cache_dtype` → element type of the cache."""


def _prompt(seed: int) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(3, VOCABULARY, TOKENS).tolist()
    return drawn
