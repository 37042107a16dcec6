"""Adapters are part of a model's identity: which are active, merged, disabled, and how scaled."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from lexico_client import Client, InMemoryTransport, fingerprint_files
from lexico_client.hf import HuggingFaceCache, weights_fingerprint
from lexico_codec.hf_inputs import cache_inputs
from lexico_proto.errors import ConfigurationError, InvalidInput
from tests.support.coded_models import llama, prompt

peft = pytest.importorskip("peft")
BaseTunerLayer = pytest.importorskip("peft.tuners.tuners_utils").BaseTunerLayer
pytestmark = [  # of peft
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # of torch.compile
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]


@pytest.fixture(autouse=True)
def no_kept_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexico_client._weights_files.default_folder", lambda: None)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path) as client:
        yield client


def raw(client: Client, model: Any, **changes: Any) -> HuggingFaceCache:
    return HuggingFaceCache(client, model, codec="raw", page_tokens=8, **changes)


def base() -> Any:
    return llama(attn_implementation="sdpa")


def lora(**changes: Any) -> Any:
    arguments = {"r": 2, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    return peft.LoraConfig(task_type="CAUSAL_LM", **{**arguments, **changes})


def drawn(model: Any, name: str, seed: int) -> None:
    """Weights for an adapter: as made, it does nothing."""
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if f".{name}." in f"{key}.":
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def adapted() -> Any:
    """Adapters red and blue; red is active."""
    model = peft.get_peft_model(base(), lora(), adapter_name="red").eval()
    model.add_adapter("blue", lora())
    for seed, name in enumerate(("red", "blue")):
        drawn(model, name, seed)
    return model


@torch.inference_mode()
def states(model: Any) -> Tensor:
    """Keys and values of a prompt."""
    cache: Any = DynamicCache()
    model(prompt(16), **cache_inputs(model, cache))
    return torch.stack([torch.stack((layer.keys, layer.values)) for layer in cache.layers])


def disabled(model: Any) -> None:
    model.base_model.disable_adapter_layers()


def scaled(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("red", 0.5)


WAYS: dict[str, Callable[[Any], None]] = {
    "red": lambda model: None,
    "blue": lambda model: model.set_adapter("blue"),
    "both": lambda model: model.base_model.set_adapter(["red", "blue"]),
    "none": disabled,
    "red-scaled": scaled,
    "red-of-other-weights": lambda model: drawn(model, "red", 7),
    "blue-merged-below-red": lambda model: model.merge_adapter(["blue"]),
}


def test_the_fingerprint_differs_where_keys_and_values_do() -> None:
    found: dict[str, tuple[Tensor, bytes]] = {}
    for name, change in WAYS.items():
        model = adapted()
        change(model)
        found[name] = (states(model), weights_fingerprint(model))
    assert len({fingerprint for _, fingerprint in found.values()}) == len(WAYS)
    pairs = itertools.combinations([made for made, _ in found.values()], 2)
    assert not any(torch.equal(one, other) for one, other in pairs), "as it should"
    plain = found.pop("none")
    assert torch.equal(states(base()), plain[0])
    assert weights_fingerprint(base()) == plain[1], "adapters that do nothing are no difference"
    assert weights_fingerprint(base()) not in {each for _, each in found.values()}


@pytest.mark.parametrize("way", [way for way in WAYS if way != "red"])
def test_a_change_between_two_calls_is_noticed(client: Client, way: str) -> None:
    model, ids = adapted(), prompt(33)
    shared = raw(client, model)
    with torch.inference_mode():
        cache = DynamicCache()
        model(ids, **cache_inputs(model, cache))
    shared.offload(ids, cache)
    hit = shared.load(ids)
    assert hit.tokens == 32
    WAYS[way](model)
    with torch.inference_mode(), pytest.raises(InvalidInput, match="another adapter"):
        model(ids[:, 32:], **hit.inputs)
    assert shared.load(ids).tokens == 0
    with pytest.raises(InvalidInput, match="another adapter"):
        shared.offload(ids, hit.cache)
    assert raw(client, model).load(ids).tokens == 0
    assert raw(client, adapted()).load(ids).tokens == 32, "the first way again, on another node"


def test_a_context_without_the_adapter(client: Client) -> None:
    model, ids = adapted(), prompt(33)
    shared = raw(client, model)
    before = shared.spec.namespace
    with model.disable_adapter():
        assert shared.spec.namespace != before
        assert shared.load(ids).tokens == 0
    assert shared.spec.namespace == before


def test_an_adapter_from_a_file_is_the_one_that_was_saved(tmp_path: Path) -> None:
    model = peft.get_peft_model(base(), lora()).eval()
    drawn(model, "default", 3)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    assert torch.equal(states(again), states(model))
    assert weights_fingerprint(again) == weights_fingerprint(model)


def test_merged_and_unloaded_is_a_model_like_any_other() -> None:
    merged = adapted().merge_and_unload()
    assert type(merged) is type(base())
    assert weights_fingerprint(merged) != weights_fingerprint(base())


def test_adapters_without_a_wrapper(client: Client) -> None:
    """As `PreTrainedModel.add_adapter` puts them in: the model's class stays."""
    model, ids = base(), prompt(33)
    shared = raw(client, model)
    seen = [shared.spec.weights]

    def switch(how: Callable[[Any], None]) -> None:
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                how(module)
        seen.append(shared.spec.weights)

    peft.inject_adapter_in_model(lora(), model, "red")
    peft.inject_adapter_in_model(lora(), model, "blue")
    drawn(model, "red", 1)
    drawn(model, "blue", 2)
    switch(lambda layer: layer.set_adapter("red"))
    switch(lambda layer: layer.set_adapter("blue"))
    switch(lambda layer: layer.set_adapter(["red", "blue"]))
    switch(lambda layer: layer.enable_adapters(False))
    assert len(set(seen)) == 4
    assert seen[-1] == seen[0], "disabled, they are no difference"
    assert shared.load(ids).tokens == 0
    assert raw(client, model, weights=bytes(32)).spec.weights == bytes(32), "none is active"
    switch(lambda layer: layer.enable_adapters(True))
    with pytest.raises(ConfigurationError, match=r"adapters blue, red: .* lora="):
        raw(client, model, weights=bytes(32))


KINDS = {
    "dora": lambda: lora(use_dora=True),
    "rank-stabilised": lambda: lora(use_rslora=True),
    "ia3": lambda: peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=["k_proj"]),
    "vera": lambda: peft.VeraConfig(r=2, target_modules=["q_proj", "o_proj"]),
    "modules-to-save": lambda: lora(modules_to_save=["embed_tokens"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_adapter(kind: str) -> None:
    model = peft.get_peft_model(base(), KINDS[kind](), adapter_name="red").eval()
    model.add_adapter("blue", KINDS[kind]())
    drawn(model, "red", 1)
    drawn(model, "blue", 2)
    one, first = states(model), weights_fingerprint(model)
    model.set_adapter("blue")
    assert not torch.equal(states(model), one)
    assert weights_fingerprint(model) != first


def test_a_given_fingerprint_does_not_speak_of_adapters(client: Client) -> None:
    model = adapted()
    with pytest.raises(ConfigurationError, match=r"adapters red: .* lora="):
        raw(client, model, weights=bytes(32))
    shared = raw(client, model, weights=bytes(32), lora="red of May")
    assert shared.load(prompt(20)).tokens == 0
    model.set_adapter("blue")
    with pytest.raises(ConfigurationError, match="weights or adapters changed"):
        shared.load(prompt(20))
    disabled(model)
    assert raw(client, model, weights=bytes(32)).load(prompt(20)).tokens == 0


class Steered(nn.Module):
    """An adapter of a library that nobody has heard of."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.strength: dict[str, float] = {"calm": 0.0}

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden) * (1 + self.strength["calm"])


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_adapter_it_is_the_model_that_it_was(kind: str) -> None:
    model = peft.get_peft_model(base(), KINDS[kind](), adapter_name="red").eval()
    drawn(model, "red", 1)
    plain = weights_fingerprint(base())
    assert weights_fingerprint(model) != plain
    with model.disable_adapter():
        assert torch.equal(states(model), states(base()))
        compiled: Any = torch.compile(model)
        assert weights_fingerprint(model) == weights_fingerprint(compiled) == plain
    assert weights_fingerprint(model) != plain
    if kind != "modules-to-save":  # unloaded, PEFT keeps the module that was trained
        assert weights_fingerprint(model.unload()) == plain


def test_what_only_seems_to_do_nothing() -> None:
    plain = weights_fingerprint(base())
    merged = adapted()
    merged.merge_adapter(["red"])
    disabled(merged)
    assert weights_fingerprint(merged) != plain, "merged: the base's weights are others"
    patched = adapted()
    disabled(patched)
    layer = patched.base_model.model.model.layers[0].self_attn.k_proj
    layer.forward = lambda hidden: layer.base_layer(hidden) * 2
    assert weights_fingerprint(patched) != plain
    partly = adapted()
    disabled(partly)
    partly.base_model.model.model.layers[0].self_attn.k_proj.enable_adapters(True)
    assert weights_fingerprint(partly) != plain


def test_a_merge_in_place_and_a_name_used_again() -> None:
    model = adapted()
    seen = [weights_fingerprint(model)]
    model.merge_adapter(["red"])
    seen.append(weights_fingerprint(model))
    model.unmerge_adapter()
    model.set_adapter("blue")
    model.delete_adapter("red")
    model.add_adapter("red", lora())
    model.set_adapter("red")
    drawn(model, "red", 11)
    seen.append(weights_fingerprint(model))
    assert len(set(seen)) == 3


def test_files_below_an_adapter(tmp_path: Path) -> None:
    base().save_pretrained(tmp_path)
    files = fingerprint_files(tmp_path)
    loaded = type(base()).from_pretrained(tmp_path, attn_implementation="sdpa")
    model = peft.get_peft_model(loaded, lora(), adapter_name="red").eval()
    drawn(model, "red", 1)
    assert weights_fingerprint(model) != files
    with model.disable_adapter():
        assert weights_fingerprint(model) == files


def test_adapters_of_an_unknown_library() -> None:
    model = base()
    plain = weights_fingerprint(model)
    layer = model.model.layers[1].self_attn
    layer.k_proj = steered = Steered(layer.k_proj)
    calm = weights_fingerprint(model)
    steered.strength["calm"] = 0.25
    assert len({plain, calm, weights_fingerprint(model)}) == 3
    steered.strength["calm"] = 0.0
    assert weights_fingerprint(model) == calm
