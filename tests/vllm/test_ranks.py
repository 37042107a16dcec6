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


def test_two_ranks_and_one_share(nursery: Nursery, fresh: EngineService, split_model: Path) -> None:
    """One rank stores the first prompt, two of split heads the second, two of split layers the
    third; each kind loads what came before, and the last its own."""
    spec = CacheSpec(
        weights=fingerprint_files(split_model),
        geometry=geometry_of(AutoConfig.from_pretrained(split_model), "float32"),
        codec=codec_named("lossless"),
    )
    connector: dict[str, Any] = {**fresh.settings, "codec": "lossless"}
    alone: dict[str, Any] = {"model": str(split_model), "skip_tokenizer_init": True}
    prompts = [_prompt(seed) for seed in range(3)]

    def computes(engine: Engine, which: int, **more: Any) -> list[int]:
        found = engine.generate(prompts[which], max_tokens=8, **more)
        assert found.cached == [0]
        return found.tokens[0]

    def stores(engine: Engine, which: int) -> list[int]:
        """Computes a prompt that nobody has stored."""
        tokens = computes(engine, which)
        wait_until(lambda: fresh.stored(spec, prompts[which]) == PAGES, "all pages to be stored")
        return tokens

    def loads(engine: Engine, which: int) -> list[int]:
        found = engine.generate(prompts[which], max_tokens=8)
        assert found.cached == [LOADED]
        return found.tokens[0]

    with nursery.engine(connector, **alone) as engine:
        expected = [stores(engine, 0)]
        expected += [computes(engine, which, prompt={"cache_salt": "own"}) for which in (1, 2)]
        engine.settle()
    with nursery.engine(connector, **alone, tensor_parallel_size=2) as engine:
        assert [loads(engine, 0), stores(engine, 1)] == expected[:2]
    assert fresh.counts(SLICED_PAGES) == {("whole",): PAGES}
    with nursery.engine(connector, **alone, pipeline_parallel_size=2) as engine:
        found = [loads(engine, 0), loads(engine, 1), stores(engine, 2)]
        assert found == expected
        engine.reset()
        assert loads(engine, 2) == expected[2]
    assert fresh.counts(SLICED_PAGES) == {("whole",): 2 * PAGES}


def _prompt(seed: int) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(3, VOCABULARY, TOKENS).tolist()
    return drawn
