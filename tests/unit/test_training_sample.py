"""What is sampled of a model: its cache, and how much attention each token got."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from lexico_codec.hf_geometry import geometry_of
from lexico_codec.hf_inputs import cache_inputs
from lexico_codec.rope import rotate
from lexico_lab.models import LoadedModel
from lexico_lab.training.importance import attention_energy, recorded_importance, training_weights
from lexico_lab.training.sample import Samples, cut_windows, sample
from tests.support.tiny_evaluation import letters as tokenizer


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
    )
    return LoadedModel("tiny", LlamaForCausalLM(config).eval(), tokenizer)


def test_samples_are_the_cache_of_the_model(tiny: LoadedModel, tmp_path: Path) -> None:
    windows = cut_windows("abcdefgh" * 30, tiny.tokenizer, 200, (64, 32))
    assert [len(w) for w in windows] == [64, 32, 64, 32]
    samples = Samples(tmp_path, windows, layers=2, kv_heads=2, head_dim=8)
    assert list(sample(tiny, samples)) == [64, 32, 64, 32]
    cache: Any = DynamicCache()
    with torch.inference_mode():
        tiny.model(torch.tensor([windows[1]]), **cache_inputs(tiny.model, cache))
    expected = cache.layers[1].values[0, :, 4:].transpose(0, 1).reshape(-1, 8).half()
    dumped = torch.frombuffer(bytearray(samples.path(1, "value").read_bytes()), dtype=torch.float16)
    assert len(dumped) == 8 * samples.rows
    assert torch.equal(dumped.view(-1, 8)[samples.rows_of(1) : samples.rows_of(2)], expected)


def test_samples_before_rope(tiny: LoadedModel, tmp_path: Path) -> None:
    """Turned again they are the cache's; equal tokens in any place have the first layer's keys."""
    rope = geometry_of(tiny.model.config, "float32").rope
    assert rope is not None
    windows = ((5, 9, 9, 9, 9, 7, 9, 9),) * 2
    samples = Samples(tmp_path, windows, layers=2, kv_heads=2, head_dim=8, rope=rope)
    assert list(sample(tiny, samples)) == [8, 8]
    data = bytearray(samples.path(0, "key").read_bytes())
    keys = torch.frombuffer(data, dtype=torch.half).view(2, 4, 2, 8)
    torch.testing.assert_close(keys[0, 0], keys[0, 3], atol=2e-3, rtol=2e-3)
    cache: Any = DynamicCache()
    with torch.inference_mode():
        tiny.model(torch.tensor([windows[0]]), **cache_inputs(tiny.model, cache))
    turned = rotate(keys[1].float(), torch.arange(4, 8), rope)
    expected = cache.layers[0].keys[0, :, 4:].transpose(0, 1)
    torch.testing.assert_close(turned, expected, atol=2e-3, rtol=2e-3)


def test_watching_attention_does_not_change_the_model(tiny: LoadedModel) -> None:
    ids = torch.arange(64)[None]
    former = tiny.model.config._attn_implementation
    with torch.inference_mode():
        plain = tiny.model(ids).logits
        with recorded_importance(tiny.model) as energy:
            watched = tiny.model(ids).logits
    assert torch.equal(plain, watched)
    assert {layer: tuple(e.shape) for layer, e in energy.items()} == {0: (2, 64), 1: (2, 64)}
    assert tiny.model.config._attn_implementation == former


def test_attention_energy_is_the_sum_of_squares_far_behind() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(6, 101, 8, generator=generator)
    key = torch.randn(3, 101, 8, generator=generator)
    scores = query @ key.repeat_interleave(2, dim=0).transpose(1, 2) * 0.3
    causal = torch.ones(101, 101).tril().bool()
    attention = scores.masked_fill(~causal, float("-inf")).softmax(2)
    squares = (attention * torch.ones(101, 101).tril(-32)).square()[:, ::4]  # every fourth query
    expected = 4 * squares.sum(1).view(3, 2, 101).sum(1)
    torch.testing.assert_close(attention_energy(query, key, 0.3), expected)


def test_training_weights_have_mean_one_and_no_giants() -> None:
    weights = training_weights(torch.cat([torch.rand(5000), torch.full((3,), 1e12)]))
    assert abs(float(weights.mean()) - 1) < 1e-5
    assert float(weights.max() / weights.min()) <= 2500.001
    assert torch.equal(training_weights(torch.zeros(5)), torch.ones(5))
