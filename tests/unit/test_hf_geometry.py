"""Geometry of Hugging Face models, against the caches that tiny models of them really fill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache

from lexico_client.engines.hf._geometry import own_geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.hf_inputs import cache_inputs
from lexico_proto.errors import Unsupported
from tests.support.coded_models import layers_of
from tests.support.tiny_configs import GROUPED, OLD, SMALL

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 512,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 512,
}
T = transformers
Make = Callable[[], Any]

# model: config, kv_heads, head_dim, rotary_dim (0 for none), pairing
COVERED: dict[str, tuple[Make, int, int, int, str]] = {
    "llama": (lambda: T.LlamaConfig(**GROUPED), 2, 16, 16, "half"),
    "llama-head-dim": (lambda: T.LlamaConfig(**GROUPED, head_dim=24), 2, 24, 24, "half"),
    "llama3": (lambda: T.LlamaConfig(**GROUPED, rope_parameters=LLAMA3), 2, 16, 16, "half"),
    "llama-linear": (lambda: T.LlamaConfig(**GROUPED, rope_parameters=LINEAR), 2, 16, 16, "half"),
    "mistral-full": (lambda: T.MistralConfig(**GROUPED, sliding_window=None), 2, 16, 16, "half"),
    "qwen2": (lambda: T.Qwen2Config(**GROUPED), 2, 16, 16, "half"),
    "qwen2-yarn": (lambda: T.Qwen2Config(**GROUPED, rope_parameters=YARN), 2, 16, 16, "half"),
    "qwen3": (lambda: T.Qwen3Config(**GROUPED, head_dim=32), 2, 32, 32, "half"),
    "phi": (lambda: T.PhiConfig(**SMALL), 4, 16, 8, "half"),
    "phi3": (lambda: T.Phi3Config(**GROUPED), 2, 16, 16, "half"),
    "gpt-neox": (lambda: T.GPTNeoXConfig(**SMALL), 4, 16, 4, "half"),
    "gptj": (lambda: T.GPTJConfig(**OLD, rotary_dim=8), 4, 16, 8, "interleaved"),
    "cohere": (lambda: T.CohereConfig(**GROUPED), 2, 16, 16, "interleaved"),
    "glm": (lambda: T.GlmConfig(**GROUPED, head_dim=16), 2, 16, 8, "interleaved"),
    "gemma": (lambda: T.GemmaConfig(**GROUPED, head_dim=16), 2, 16, 16, "half"),
    "gpt2": (lambda: T.GPT2Config(**OLD, bos_token_id=1, eos_token_id=2), 4, 16, 0, ""),
}
# model: config, a word of the reason
REFUSED: dict[str, tuple[Make, str]] = {
    "mistral-sliding": (lambda: T.MistralConfig(**GROUPED), "SlidingWindow.*full attention"),
    "qwen2-sliding": (
        lambda: T.Qwen2Config(
            **GROUPED, use_sliding_window=True, sliding_window=16, max_window_layers=1
        ),
        "SlidingWindow",
    ),
    "gemma2": (lambda: T.Gemma2Config(**GROUPED, head_dim=16), "SlidingWindow.*full attention"),
    "deepseek-v3": (lambda: T.DeepseekV3Config(**GROUPED), "latent"),
    "jamba": (lambda: T.JambaConfig(**{**GROUPED, "num_hidden_layers": 8}), "[Ll]inear"),
    "mamba": (lambda: T.MambaConfig(hidden_size=64, num_hidden_layers=2), "[Ll]inear"),
    "dynamic": (lambda: T.LlamaConfig(**GROUPED, rope_parameters=DYNAMIC), "dynamic.*length"),
    "longrope": (
        lambda: T.Phi3Config(**GROUPED, rope_parameters=LONGROPE, max_position_embeddings=2048),
        "longrope.*length",
    ),
    "smollm3": (
        lambda: T.SmolLM3Config(**{**GROUPED, "num_hidden_layers": 4}),
        "some layers without",
    ),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The library logs advice on the odd numbers of tiny configs."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


@pytest.mark.parametrize("name", COVERED)
def test_geometry_is_that_of_the_cache(name: str) -> None:
    make, kv_heads, head_dim, rotary_dim, pairing = COVERED[name]
    config = make()
    geometry = geometry_of(config, torch.bfloat16)
    assert (geometry.layers, geometry.kv_heads, geometry.head_dim) == (2, kv_heads, head_dim)
    assert geometry.dtype == "bfloat16"
    if geometry.rope is None:
        assert rotary_dim == 0
    else:
        assert (geometry.rope.rotary_dim, geometry.rope.pairing) == (rotary_dim, pairing)
    model = transformers.AutoModelForCausalLM.from_config(config)
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(torch.arange(3, 8)[None], **cache_inputs(model, cache), use_cache=True)
    assert [tuple(layer.keys.shape) for layer in layers_of(cache)] == [
        (1, kv_heads, 5, head_dim)
    ] * 2
    assert [tuple(layer.values.shape) for layer in layers_of(cache)] == [
        (1, kv_heads, 5, head_dim)
    ] * 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_covered_is_refused_with_the_reason(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(Unsupported, match=reason) as caught:
        geometry_of(make(), torch.float16)
    assert type(caught.value) is Unsupported


def test_frequencies_are_the_published_ones() -> None:
    rope = geometry_of(T.LlamaConfig(**GROUPED), "float16").rope
    assert rope is not None
    assert rope.inv_freq == pytest.approx([10000.0 ** (-i / 8) for i in range(8)], rel=1e-6)


def test_scaled_ropes_differ_from_the_plain_one() -> None:
    ropes = {
        name: geometry_of(COVERED[name][0](), "float16").rope
        for name in ("llama", "llama3", "llama-linear", "qwen2-yarn")
    }
    assert len({rope.canonical() for rope in ropes.values() if rope is not None}) == 4
    yarn = ropes["qwen2-yarn"]
    assert yarn is not None
    assert yarn.scale > 1.1


def test_equal_configs_give_equal_digests() -> None:
    make = COVERED["qwen2-yarn"][0]
    assert geometry_of(make(), torch.float16).digest() == geometry_of(make(), "float16").digest()


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, "float8_e4m3fnuz", "half"], ids=str)
def test_cache_of_another_dtype(dtype: torch.dtype | str) -> None:
    with pytest.raises(Unsupported, match="float32, float16, bfloat16"):
        geometry_of(T.LlamaConfig(**GROUPED), dtype)


def test_a_model_in_eight_bits_is_refused() -> None:
    """Its cache is not: transformers computes in 16."""
    model = T.LlamaForCausalLM(T.LlamaConfig(**GROUPED))
    assert own_geometry(model).dtype == "float32"
    with pytest.raises(Unsupported, match=r"in torch\.float8_e4m3fn: its cache is of another"):
        own_geometry(model.to(torch.float8_e4m3fn))  # type: ignore[arg-type]


def test_config_without_a_modeling_module() -> None:
    class OwnConfig(T.LlamaConfig):
        pass

    OwnConfig.__module__ = "somewhere.else"
    with pytest.raises(Unsupported, match="modeling module"):
        geometry_of(OwnConfig(**GROUPED), "float16")
