"""Rotation of keys: inverse of itself, and the very one that transformers' models do."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from lexico_codec.geometry import Pairing, Rope
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.rope import rotate, unrotate

# (dtype, atol, rtol) for values near 1: one rounding each way
TOLERANCES = {
    torch.float64: (2e-7, 2e-7),  # cos and sin are float32's
    torch.float32: (2e-6, 2e-6),
    torch.float16: (4e-3, 2e-3),
    torch.bfloat16: (3e-2, 2e-2),
}
PAIRINGS: list[Pairing] = ["half", "interleaved"]


def rope_of(pairs: int, pairing: Pairing, scale: float = 1.0) -> Rope:
    return Rope(tuple(10000.0 ** (-i / pairs) for i in range(pairs)), pairing, scale)


def random_keys(
    tokens: int, heads: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, heads, dim, generator=generator).to(dtype)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("scale", [1.0, 0.5, 1.1386])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("dim", "pairs"), [(64, 32), (80, 10), (63, 31), (2, 1)])
def test_unrotate_inverts_rotate(
    dim: int, pairs: int, dtype: torch.dtype, scale: float, pairing: Pairing
) -> None:
    rope = rope_of(pairs, pairing, scale)
    positions = torch.tensor([0, 1, 2, 255, 256, 4095, 131071])
    keys = random_keys(7, 3, dim, dtype)
    turned = rotate(keys, positions, rope)
    assert (turned.dtype, turned.shape) == (dtype, keys.shape)
    atol, rtol = TOLERANCES[dtype]
    torch.testing.assert_close(unrotate(turned, positions, rope), keys, atol=atol, rtol=rtol)
    torch.testing.assert_close(
        rotate(unrotate(keys, positions, rope), positions, rope), keys, atol=atol, rtol=rtol
    )


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_rest_of_the_head_stays(pairing: Pairing) -> None:
    keys = random_keys(5, 2, 20)
    turned = rotate(keys, torch.arange(5) + 3, rope_of(4, pairing, scale=2.0))
    assert torch.equal(turned[..., 8:], keys[..., 8:])
    assert not bool((turned[..., :8] == keys[..., :8]).any())


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_position_zero_is_the_scale(pairing: Pairing) -> None:
    keys = random_keys(1, 2, 8)
    rope = rope_of(4, pairing, scale=1.5)
    torch.testing.assert_close(rotate(keys, torch.tensor([0]), rope), 1.5 * keys)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_dot_products_depend_on_the_distance_alone(pairing: Pairing) -> None:
    rope, a, b = rope_of(8, pairing), random_keys(1, 1, 16), random_keys(1, 1, 16, seed=1)
    products = [
        float((rotate(a, torch.tensor([at]), rope) * rotate(b, torch.tensor([at + 5]), rope)).sum())
        for at in (0, 3, 100)
    ]
    assert products == pytest.approx([products[0]] * 3, abs=1e-4)


def test_one_pair_by_hand() -> None:
    rope = Rope((0.5,), "half", 2.0)
    turned = rotate(torch.tensor([[[3.0, 4.0]]]), torch.tensor([3]), rope)
    c, s = torch.cos(torch.tensor(1.5)), torch.sin(torch.tensor(1.5))
    expected = 2 * torch.stack([3 * c - 4 * s, 4 * c + 3 * s])
    torch.testing.assert_close(turned[0, 0], expected)


def test_pairings_name_different_components() -> None:
    keys, positions = torch.zeros(1, 1, 4), torch.tensor([1])
    keys[..., 0] = 1.0
    half = rotate(keys, positions, rope_of(2, "half"))[0, 0]
    interleaved = rotate(keys, positions, rope_of(2, "interleaved"))[0, 0]
    assert half.nonzero().flatten().tolist() == [0, 2]
    assert interleaved.nonzero().flatten().tolist() == [0, 1]


def test_input_is_left_alone_whatever_its_strides() -> None:
    keys = random_keys(6, 4, 10).transpose(0, 1).contiguous().transpose(0, 1)
    before = keys.clone()
    turned = rotate(keys, torch.arange(6), rope_of(5, "half"))
    assert torch.equal(keys, before)
    assert torch.equal(turned, rotate(before, torch.arange(6), rope_of(5, "half")))


def test_no_tokens() -> None:
    empty = torch.empty(0, 2, 8)
    assert rotate(empty, torch.empty(0, dtype=torch.int64), rope_of(4, "half")).shape == (0, 2, 8)


SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "vocab_size": 300_000,
    "intermediate_size": 64,
    "max_position_embeddings": 32768,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 8192,
}
MODELS: dict[str, tuple[str, str, Callable[[], Any]]] = {
    "llama": ("llama", "Llama", lambda: transformers.LlamaConfig(**SMALL)),
    "llama3": ("llama", "Llama", lambda: transformers.LlamaConfig(**SMALL, rope_parameters=LLAMA3)),
    "qwen2": ("qwen2", "Qwen2", lambda: transformers.Qwen2Config(**SMALL)),
    "qwen2-yarn": (
        "qwen2",
        "Qwen2",
        lambda: transformers.Qwen2Config(**SMALL, rope_parameters=YARN),
    ),
    "gpt-neox-partial": ("gpt_neox", "GPTNeoX", lambda: transformers.GPTNeoXConfig(**SMALL)),
    "cohere-interleaved": ("cohere", "Cohere", lambda: transformers.CohereConfig(**SMALL)),
}


@pytest.mark.parametrize("name", MODELS)
def test_rotate_is_what_transformers_does(name: str) -> None:
    family, prefix, make = MODELS[name]
    config = make()
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    rope = geometry_of(config, torch.float32).rope
    assert rope is not None
    positions = torch.tensor([0, 1, 2, 63, 64, 255, 4097, 20000, 32767])
    keys = random_keys(len(positions), 3, 16, seed=5)
    cos, sin = getattr(module, f"{prefix}RotaryEmbedding")(config)(keys, positions[None])
    expected = module.apply_rotary_pos_emb(
        keys.transpose(0, 1)[None], keys.transpose(0, 1)[None], cos, sin
    )[1][0].transpose(0, 1)
    torch.testing.assert_close(rotate(keys, positions, rope), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(unrotate(expected, positions, rope), keys, atol=1e-5, rtol=1e-5)


def test_tables_cover_what_they_claim() -> None:
    ropes = {name: geometry_of(make(), "float32").rope for name, (_, _, make) in MODELS.items()}
    assert {name: (r.pairing, r.rotary_dim) for name, r in ropes.items() if r is not None} == {
        "llama": ("half", 16),
        "llama3": ("half", 16),
        "qwen2": ("half", 16),
        "qwen2-yarn": ("half", 16),
        "gpt-neox-partial": ("half", 4),
        "cohere-interleaved": ("interleaved", 16),
    }
    plain, llama3, yarn = ropes["llama"], ropes["llama3"], ropes["qwen2-yarn"]
    assert plain is not None
    assert llama3 is not None
    assert yarn is not None
    assert plain.inv_freq != llama3.inv_freq
    assert plain.scale == llama3.scale == 1.0
    assert yarn.scale == pytest.approx(0.1 * torch.tensor(4.0).log().item() + 1)
