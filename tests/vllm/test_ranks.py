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
from tests.support.vllm_engine import Engine, Nursery
from tests.support.vllm_service import EngineService
from tests.support.waiting import wait_until
from tests.vllm.conftest import LOADED, TOKENS

VOCABULARY: Final = 512
PAGES: Final = 9
WAYS: Final = {
    "tensor": {"tensor_parallel_size": 2},
    "pipeline": {"pipeline_parallel_size": 2},
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


def prompt(seed: int) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(3, VOCABULARY, TOKENS).tolist()
    return drawn


def test_two_ranks_and_one_load_what_the_other_stored(
    nursery: Nursery, fresh: EngineService, split_model: Path
) -> None:
    spec = CacheSpec(
        weights=fingerprint_files(split_model),
        geometry=geometry_of(AutoConfig.from_pretrained(split_model), "float32"),
        codec=codec_named("lossless"),
    )
    tokens: dict[int, list[int]] = {}

    def stores(engine: Engine, seed: int) -> None:
        """Computes a prompt that nobody has stored, and stores it."""
        found = engine.generate(prompt(seed), max_tokens=8)
        assert found.cached == [0]
        tokens[seed] = found.tokens[0]
        wait_until(lambda: fresh.stored(spec, prompt(seed)) == PAGES, "all pages to be stored")

    def loads(engine: Engine) -> None:
        """Every prompt so far."""
        for seed, expected in tokens.items():
            found = engine.generate(prompt(seed), max_tokens=8)
            assert (found.cached, found.tokens) == ([LOADED], [expected])

    connector: dict[str, Any] = {**fresh.settings, "codec": "lossless"}
    alone: dict[str, Any] = {"model": str(split_model), "skip_tokenizer_init": True}
    with nursery.engine(connector, **alone) as engine:
        stores(engine, 0)
    for seed, way in enumerate(WAYS.values(), 1):
        before = fresh.counts(SLICED_PAGES).get(("whole",), 0)
        with nursery.engine(connector, **alone, **way) as engine:
            loads(engine)
            stores(engine, seed)
        assert fresh.counts(SLICED_PAGES) == {("whole",): before + PAGES}
    with nursery.engine(connector, **alone) as engine:
        loads(engine)
