"""Caches of models with biases, every pairing, scaled or partial RoPE: raw is exact, codecs that
code keys before RoPE are as exact as their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from lexico_codec.codecs import Codec, PackedCodec, RawCodec, ResidualCodec
from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.hf_inputs import cache_inputs
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group, encode_group
from lexico_codec.rope import rotate, unrotate
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from tests.contract.codec_suite import bits
from tests.support.coded_models import layers_of
from tests.support.packed_sets import packed_set
from tests.support.residual_sets import fitted_to, products
from tests.support.tiny_configs import GROUPED, OLD, SMALL

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
T = transformers
KINDS: dict[str, Callable[[], Any]] = {
    "qwen2-biases": lambda: T.Qwen2Config(**GROUPED),
    "llama3-scaling": lambda: T.LlamaConfig(**GROUPED, rope_parameters=LLAMA3),
    "yarn": lambda: T.LlamaConfig(**GROUPED, rope_parameters=YARN),
    "gptj-interleaved-partial": lambda: T.GPTJConfig(**OLD, rotary_dim=8),
    "cohere-interleaved": lambda: T.CohereConfig(**GROUPED),
    "glm-interleaved-partial": lambda: T.GlmConfig(**GROUPED, head_dim=16),
    "phi-partial": lambda: T.PhiConfig(**SMALL),
    "gpt2-no-rope": lambda: T.GPT2Config(**OLD, bos_token_id=1, eos_token_id=2),
}
TOKENS = 70
PAGE = 35
IDS = [(7 * at + at // 5) % 61 + 3 for at in range(TOKENS)]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with products(quick=False):
        yield
    transformers.logging.set_verbosity(before)


def model_of(name: str) -> tuple[Any, Geometry]:
    """A random model whose biases are not zero."""
    torch.manual_seed(0)
    config = KINDS[name]()
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model, geometry_of(config, torch.float32)


def cache_of(model: Any, ids: list[int]) -> Tensor:
    """`[layers, 2, tokens, kv_heads, head_dim]`."""
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.tensor([ids]), **cache_inputs(model, cache), use_cache=True)
    pairs = [torch.stack([layer.keys[0], layer.values[0]]) for layer in layers_of(cache)]
    return torch.stack(pairs).transpose(2, 3).contiguous()


def reloaded(
    group: Tensor, geometry: Geometry, codec: Codec, dictionary: DictionarySet | None
) -> Tensor:
    """A cache that went through frames, page by page."""
    digest = b"" if dictionary is None else dictionary.digest
    spec = CacheSpec(bytes(32), geometry, codec, digest, page_tokens=PAGE)
    out = torch.full_like(group, float("nan"))
    for page, key in enumerate(page_keys(spec, IDS)):
        for at in range(spec.groups):
            layers, tokens = spec.group_range(at), slice(page * PAGE, (page + 1) * PAGE)
            part = group[layers.start : layers.stop, :, tokens].contiguous()
            frame = encode_group(spec, key, page, at, part, dictionary)
            decode_group(
                spec, key, page, at, frame, out[layers.start : layers.stop, :, tokens], dictionary
            )
    return out


def next_tokens(model: Any, group: Tensor) -> Tensor:
    """What the model says of further tokens, after a cache."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(group.transpose(2, 3)):
        cache.update(keys[None], values[None], layer)
    with torch.no_grad():
        return model(torch.tensor([[5, 9, 11]]), **cache_inputs(model, cache)).logits


def before_rope(group: Tensor, geometry: Geometry) -> Tensor:
    """The group with RoPE taken off its keys, and means of 0."""
    if geometry.rope is None:
        return group
    keys = [unrotate(layer[0], torch.arange(TOKENS), geometry.rope) for layer in group]
    return torch.stack([torch.stack(keys), group[:, 1]], 1)


@pytest.mark.parametrize("name", KINDS)
def test_keys_before_rope_are_those_of_the_projection(name: str) -> None:
    """Equal tokens have equal keys in the first layer, wherever they are, biases and all."""
    model, geometry = model_of(name)
    if geometry.rope is None:
        return
    keys = cache_of(model, [7] * TOKENS)[0, 0]
    before = unrotate(keys, torch.arange(TOKENS), geometry.rope)
    torch.testing.assert_close(before, before[:1].expand_as(before), atol=2e-5, rtol=2e-5)
    assert float((keys[1] - keys[0]).abs().max()) > 1e-3
    turned = rotate(before, torch.arange(TOKENS), geometry.rope)
    torch.testing.assert_close(turned, keys, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", KINDS)
def test_raw_is_exact(name: str) -> None:
    model, geometry = model_of(name)
    group = cache_of(model, IDS)
    assert torch.equal(bits(reloaded(group, geometry, RawCodec(), None)), bits(group))


@pytest.mark.parametrize("name", KINDS)
def test_residual_is_exact_to_its_step(name: str) -> None:
    model, geometry = model_of(name)
    group = cache_of(model, IDS)
    dictionary = fitted_to(before_rope(group, geometry))
    codec = ResidualCodec(step=2.0**-10)
    made = reloaded(group, geometry, codec, dictionary)
    assert torch.equal(bits(made[:, :, :4]), bits(group[:, :, :4])), "sinks"
    assert float((made - group).norm() / group.norm()) < 1e-3
    exact = next_tokens(model, group).log_softmax(-1)
    torch.testing.assert_close(
        next_tokens(model, made).log_softmax(-1), exact, atol=5e-3, rtol=5e-3
    )


@pytest.mark.parametrize("name", KINDS)
def test_packed_with_every_atom_is_near(name: str) -> None:
    model, geometry = model_of(name)
    group = cache_of(model, IDS)
    made = reloaded(group, geometry, PackedCodec(16, bits=8), packed_set(2, 16, mean=0.0))
    assert torch.equal(bits(made[:, :, :4]), bits(group[:, :, :4])), "sinks"
    assert float((made - group).norm() / group.norm()) < 0.05
