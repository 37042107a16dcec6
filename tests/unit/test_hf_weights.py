"""Weights that change under a living `HuggingFaceCache` are noticed on its next call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from transformers import DynamicCache

from lexico_client import Client, InMemoryTransport
from lexico_client.hf import HuggingFaceCache, weights_fingerprint
from lexico_codec.hf_inputs import cache_inputs
from lexico_proto.errors import ConfigurationError, InvalidInput
from tests.support.coded_models import layers_of, llama, prompt, shared_of

IDS = prompt(33)


def model_of(**changes: Any) -> Any:
    return llama(attn_implementation="sdpa", **changes)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path) as client:
        yield client


def raw(client: Client, model: Any, **changes: Any) -> HuggingFaceCache:
    return HuggingFaceCache(client, model, codec="raw", page_tokens=8, **changes)


def prefilled(model: Any) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(IDS, **cache_inputs(model, cache))
    return cache


@torch.no_grad()
def added_to(model: Any) -> None:
    for parameter in model.parameters():
        parameter.add_(0.01)


def added_behind_its_back(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.add_(0.01)


def one_tensor(model: Any) -> None:
    model.model.layers[2].self_attn.k_proj.weight.data.mul_(1.01)


def loaded(model: Any) -> None:
    added = copy.deepcopy(model)
    added_to(added)
    model.load_state_dict(added.state_dict())


def stepped(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()


def replaced(model: Any) -> None:
    weight = model.model.layers[0].self_attn.k_proj.weight
    weight.data = weight.data + 0.01


def another_module(model: Any) -> None:
    model.model.layers[0].mlp = copy.deepcopy(model.model.layers[1].mlp)


@torch.inference_mode()
def under_inference_mode(model: Any) -> None:
    for parameter in model.parameters():
        parameter.add_(0.01)


def another_activation(model: Any) -> None:
    model.model.layers[0].mlp.act_fn = torch.nn.ReLU()


def another_epsilon(model: Any) -> None:
    model.model.layers[0].input_layernorm.variance_epsilon = 0.1


def another_scaling(model: Any) -> None:
    model.model.layers[0].self_attn.scaling *= 1.5


CHANGES: dict[str, Callable[[Any], None]] = {
    "add": added_to,
    "data-add": added_behind_its_back,
    "one-tensor": one_tensor,
    "load-state-dict": loaded,
    "optimizer": stepped,
    "data-replaced": replaced,
    "another-module": another_module,
    "inference-mode": under_inference_mode,
    "activation": another_activation,
    "epsilon": another_epsilon,
    "scaling": another_scaling,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed_on_the_next_call(client: Client, change: str) -> None:
    model = model_of()
    shared = raw(client, model)
    shared.offload(IDS, prefilled(model))
    hit, before = shared.load(IDS), shared.spec
    assert hit.tokens == 32
    CHANGES[change](model)
    assert shared.load(IDS).tokens == 0
    assert shared.spec.namespace != before.namespace
    assert shared.offload(IDS, prefilled(model)).pages == ("stored",) * 4, "under a name of its own"
    again = shared.load(IDS)
    for ours, theirs in zip(layers_of(again.cache), layers_of(prefilled(model)), strict=True):
        assert torch.equal(ours.keys, theirs.keys[:, :, :32])
    assert raw(client, model_of()).load(IDS).tokens == 32, "nodes of the old weights go on"


@pytest.mark.parametrize("change", CHANGES)
def test_a_hit_meets_the_weights_that_it_was_loaded_for(client: Client, change: str) -> None:
    model = model_of()
    shared = raw(client, model)
    shared.offload(IDS, prefilled(model))
    hit = shared.load(IDS)
    CHANGES[change](model)
    with pytest.raises(InvalidInput, match="loaded for other weights"):
        model.generate(IDS, **hit.inputs, max_new_tokens=2)
    with torch.inference_mode(), pytest.raises(InvalidInput, match="loaded for other weights"):
        model(IDS[:, hit.tokens :], **hit.inputs)


def test_a_hit_goes_into_an_equal_model_and_into_no_other(client: Client) -> None:
    model, equal, other = model_of(), model_of(), model_of()
    added_to(other)
    shared = raw(client, model)
    shared.offload(IDS, prefilled(model))
    for each in (equal, other):
        raw(client, each).load(IDS)  # from then on its caches are looked at
    hit = shared.load(IDS)
    before = equal.generate(IDS, max_new_tokens=3)
    assert torch.equal(equal.generate(IDS, **hit.inputs, max_new_tokens=3), before)
    with pytest.raises(InvalidInput, match="loaded for other weights"):
        other.generate(IDS, **hit.inputs, max_new_tokens=3)


def test_weights_made_under_inference_mode(client: Client) -> None:
    """They count no writes: the sample of their elements tells."""
    with torch.inference_mode():
        model = model_of()
        shared = raw(client, model)
        shared.offload(IDS, prefilled(model))
        assert shared.load(IDS).tokens == 32
        one_tensor(model)
        assert shared.load(IDS).tokens == 0


def test_codes_too(client: Client) -> None:
    model = llama()
    shared = shared_of(client, model)
    shared.offload(IDS, prefilled(model))
    assert shared.load_codes(IDS).tokens == 32
    hit = shared.load_codes(IDS)
    added_to(model)
    with torch.inference_mode(), pytest.raises(InvalidInput, match="loaded for other weights"):
        model(IDS[:, hit.tokens :], **hit.inputs)
    assert shared.load_codes(IDS).tokens == 0


@pytest.mark.parametrize("stored", [True, False], ids=["hit", "miss"])
def test_a_loaded_cache_stays_with_its_weights(client: Client, stored: bool) -> None:
    model = model_of()
    shared = raw(client, model)
    if stored:
        shared.offload(IDS, prefilled(model))
    hit = shared.load(IDS)
    with torch.inference_mode():
        model(IDS[:, hit.tokens :], **hit.inputs)
    fork = copy.deepcopy(hit.cache)
    shared.offload(IDS, fork)
    added_to(model)
    for cache in (hit.cache, fork):
        with pytest.raises(InvalidInput, match="loaded for other weights"):
            shared.offload(IDS, cache)
    assert shared.load(IDS).tokens == 0


def test_the_old_weights_put_back_find_their_pages(client: Client) -> None:
    model = model_of()
    shared, kept = raw(client, model), copy.deepcopy(model.state_dict())
    shared.offload(IDS, prefilled(model))
    hit = shared.load(IDS)
    added_to(model)
    assert shared.load(IDS).tokens == 0
    model.load_state_dict(kept)
    assert shared.load(IDS).tokens == 32
    assert set(shared.offload(IDS, hit.cache).pages) == {"present"}


def test_a_model_of_another_dtype_is_another_model(client: Client) -> None:
    model = model_of()
    shared = raw(client, model)
    shared.offload(IDS, prefilled(model))
    model.to(torch.bfloat16)
    assert shared.spec.geometry.dtype == "bfloat16"
    assert set(shared.offload(IDS, prefilled(model)).pages) == {"stored"}
    assert layers_of(shared.load(IDS).cache)[0].keys.dtype == torch.bfloat16


@pytest.mark.parametrize("change", CHANGES)
def test_a_given_fingerprint_does_not_follow(client: Client, change: str) -> None:
    model = model_of()
    shared = raw(client, model, weights=bytes(32))
    shared.offload(IDS, prefilled(model))
    assert shared.load(IDS).tokens == 32
    CHANGES[change](model)
    for call in (
        lambda: shared.load(IDS),
        lambda: shared.offload(IDS, prefilled(model)),
        lambda: shared.spec,
    ):
        with pytest.raises(ConfigurationError, match="make a new HuggingFaceCache"):
            call()
    assert raw(client, model, weights=bytes([1]) * 32).load(IDS).tokens == 0


def test_a_given_fingerprint_stays_where_weights_only_move(client: Client) -> None:
    model = model_of()
    shared = raw(client, model, weights=bytes(32))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        model.lm_head.weight.add_(0)
    assert shared.spec.weights == bytes(32)


def test_weights_are_hashed_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    model, hashed = model_of(), []
    real = xxhash.xxh3_128_hexdigest

    def counted(data: Any) -> str:
        hashed.append(1)
        return real(data)

    monkeypatch.setattr(xxhash, "xxh3_128_hexdigest", counted)
    shared = raw(client, model)
    tensors = len(hashed)
    assert tensors == len(model.get_decoder().state_dict())
    shared.load(IDS)
    raw(client, model).offload(IDS, prefilled(model))
    assert len(hashed) == tensors
    added_to(model)
    shared.load(IDS)
    assert len(hashed) == 2 * tensors


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch.compile
def test_compiled_or_not_it_is_the_same_model() -> None:
    model, parts = model_of(), model_of()
    parts.model.layers[1] = torch.compile(parts.model.layers[1])
    fingerprint = weights_fingerprint(model)
    compiled: Any = torch.compile(model)
    assert weights_fingerprint(compiled) == fingerprint
    assert weights_fingerprint(parts) == fingerprint


def test_rotary_frequencies_of_another_precision_are_another_model() -> None:
    """`model.to(dtype)` rounds them, `from_pretrained(dtype=...)` does not."""
    rounded, exact = model_of().to(torch.bfloat16), model_of()
    for parameter in exact.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    assert weights_fingerprint(rounded) != weights_fingerprint(exact)
