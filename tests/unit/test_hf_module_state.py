"""What a model's own modules keep beside tensors, and functions put over theirs, are part of its
identity; what was only loaded, moved, compiled or hooked by accelerate is not."""

from __future__ import annotations

import copy
import functools
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from lexico_client import Client, InMemoryTransport, fingerprint_files
from lexico_client.engines.hf._functions import said_of
from lexico_client.hf import HuggingFaceCache, weights_fingerprint
from lexico_codec.hf_inputs import cache_inputs
from tests.support.answers import GROUPED, SHAPE
from tests.support.coded_models import llama, prompt

IDS = prompt(33)


@pytest.fixture(autouse=True)
def no_kept_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexico_client._weights_files.default_folder", lambda: None)


def model_of() -> Any:
    return llama(attn_implementation="sdpa")


def mixture() -> Any:
    torch.manual_seed(0)
    config = MixtralConfig(
        **SHAPE, **GROUPED, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
    )
    return MixtralForCausalLM(config).train(False)


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=97, bos_token_id=1, eos_token_id=1
    )
    return GPT2LMHeadModel(config).train(False)


def with_gelu(model: Any) -> Any:
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.GELU()
    return model


def everywhere(attribute: str, value: object) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        found = [module for module in model.modules() if attribute in vars(module)]
        assert found, "the model keeps something else by now"
        for module in found:
            setattr(module, attribute, value)

    return change


def halved(model: Any) -> None:
    for layer in model.model.layers:
        before = layer.mlp.forward
        layer.mlp.forward = lambda x, before=before: 0.5 * before(x)


def doubled(self: LlamaMLP, x: Tensor) -> Tensor:
    return 2 * type(self).forward(self, x)


def method_over_another(model: Any) -> None:
    model.model.layers[1].mlp.forward = MethodType(doubled, model.model.layers[1].mlp)


def neighbour(model: Any) -> None:
    model.model.layers[1].mlp.forward = model.model.layers[0].mlp.forward


def partial_over_another(model: Any) -> None:
    mlp = model.model.layers[1].mlp
    mlp.forward = functools.partial(doubled, mlp)


def other_config(model: Any) -> None:
    attention = model.model.layers[1].self_attn
    attention.config = copy.deepcopy(attention.config)
    attention.config.rms_norm_eps = 0.5


def acts(model: Any) -> None:
    model.model.layers[0].mlp.act_fn = nn.Sequential(nn.GELU(), nn.Tanh())


def acts_otherwise(model: Any) -> None:
    model.model.layers[0].mlp.act_fn = nn.Sequential(nn.GELU(), nn.ReLU())


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "causality": (model_of, everywhere("is_causal", False)),
    "experts a token": (mixture, everywhere("top_k", 1)),
    "a flag": (gpt2, everywhere("scale_attn_by_inverse_layer_idx", True)),
    "a word": (lambda: with_gelu(model_of()), everywhere("approximate", "tanh")),
    "a bound on norms": (
        model_of,
        lambda model: setattr(model.model.embed_tokens, "max_norm", 0.1),
    ),
    "groups": (model_of, lambda model: setattr(model.model.layers[0], "hidden_size", (1, 2))),
    "a dtype": (model_of, lambda model: setattr(model.model.norm, "compute", torch.float16)),
    "forward": (model_of, halved),
    "a method": (model_of, method_over_another),
    "the neighbour's": (model_of, neighbour),
    "a partial": (model_of, partial_over_another),
    "the decoder's": (model_of, lambda model: setattr(model.model, "forward", print)),
    "a config of its own": (model_of, other_config),
    "modules within": (model_of, acts),
    "a scaling that is a tensor": (model_of, everywhere("scaling", torch.tensor(0.1))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_another_model(name: str) -> None:
    make, change = CHANGES[name]
    model, late = make(), make()
    before = weights_fingerprint(late)
    change(model)
    assert weights_fingerprint(model) != before, "before the first look"
    change(late)
    assert weights_fingerprint(late) != before, "after it"


def test_what_is_within_a_replaced_module_counts() -> None:
    one, other = model_of(), model_of()
    acts(one)
    acts_otherwise(other)
    assert weights_fingerprint(one) != weights_fingerprint(other)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["causality", "experts a token", "a word", "forward"])
def test_pages_of_before_are_a_miss(tmp_path: Path, name: str) -> None:
    make, change = CHANGES[name]
    model = make()
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path) as client:
        shared = HuggingFaceCache(client, model, codec="raw", page_tokens=8)
        cache: Any = DynamicCache(config=model.config)
        model(IDS, **cache_inputs(model, cache))
        shared.offload(IDS, cache)
        hit = shared.load(IDS)
        assert hit.tokens == 32
        change(model)
        assert shared.load(IDS).tokens == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch.compile
def test_what_changes_nothing(tmp_path: Path) -> None:
    """Neither what libraries put over methods, nor notes that they leave on modules."""
    model_of().save_pretrained(tmp_path)
    files = fingerprint_files(tmp_path)
    model: Any = LlamaForCausalLM.from_pretrained(tmp_path)
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.add_hook_to_module(model.model.layers[0].mlp, hooks.ModelHook())
    hooks.add_hook_to_module(model.model.layers[1], hooks.AlignDevicesHook("cpu"))
    assert weights_fingerprint(copy.deepcopy(model)) == files
    model.forward = torch.compile(model.forward)
    model.model.layers[2].self_attn.forward = torch.compile(model.model.layers[2].self_attn.forward)
    model.generate = functools.partial(model.generate, do_sample=False)
    model.config.pad_token_id = 0
    model.model.gradient_checkpointing = True
    model.hf_device_map = {"": "cpu"}
    assert weights_fingerprint(model) == files
    assert weights_fingerprint(copy.deepcopy(model)) != files, "its forward is of this model"
    halved(model)
    assert weights_fingerprint(model) != files
    hooks.add_hook_to_module(model.model.layers[0].mlp, hooks.ModelHook())
    assert weights_fingerprint(model) != files, "under accelerate's lies another one"


def test_a_dynamic_rope_that_comes_back() -> None:
    """A module that notes what it has seen is another one as long as that matters."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = llama(attn_implementation="sdpa", rope_parameters=rope, max_position_embeddings=40)
    before, frequencies = weights_fingerprint(model), model.model.rotary_emb.inv_freq.clone()
    with torch.inference_mode():
        model(IDS)
        assert weights_fingerprint(model) == before
        model(prompt(60))
        assert weights_fingerprint(model) != before
        model(IDS)
    # transformers 5.12 notes the length under another name than it reads: it never comes back.
    came_back = torch.equal(model.model.rotary_emb.inv_freq, frequencies)
    assert (weights_fingerprint(model) == before) == came_back


def test_what_a_function_is_called() -> None:
    def made(number: float) -> Callable[[float], float]:
        return lambda x: x * number

    assert said_of(nn.functional.silu) == "torch.nn.functional.silu"
    assert said_of(made(2.0)) == said_of(made(2.0)) != said_of(made(3.0))
    assert said_of(lambda x: x + 1) != said_of(lambda x: x + 2)
    scale = torch.tensor(2.0)
    one, other = (lambda x: x * scale), (lambda x: x * scale)
    assert said_of(one) == said_of(one) != said_of(other), "what it holds cannot be said"
    half = functools.partial(torch.mul, other=0.5)
    assert said_of(half) == said_of(half) != said_of(functools.partial(torch.mul, other=0.25))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.float32(0.25), np.float32(0.5)),
        (np.float64(0.25), np.float64(0.5)),
        (np.bool_(False), np.bool_(True)),
        (Fraction(1, 4), Fraction(1, 2)),
        (np.array([0.25]), np.array([0.5])),
        ({"a": np.float32(0.25)}, {"a": np.float32(0.5)}),
        (deque([0.25]), deque([0.5])),
        (SimpleNamespace(scale=0.25), SimpleNamespace(scale=0.5)),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_numbers_of_any_kind_count(one: object, other: object) -> None:
    """Scales are often computed by numpy."""
    model = model_of()
    said = [weights_fingerprint(model)]
    for value in (one, copy.deepcopy(one), other):
        everywhere("scaling", value)(model)
        said.append(weights_fingerprint(model))
    assert said[1] == said[2]
    assert len(set(said)) == 3
