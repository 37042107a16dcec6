"""Equal keys and values have one fingerprint, whatever stands around the model; others have
another."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    LlamaForCausalLM,
    LlamaModel,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lexico_client import Client, InMemoryTransport, fingerprint_files
from lexico_client.hf import HuggingFaceCache, weights_fingerprint
from lexico_proto.errors import ConfigurationError
from tests.support.coded_models import llama

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile


def model_of(**changes: Any) -> Any:
    return llama(attn_implementation="sdpa", **changes)


@pytest.fixture(autouse=True)
def no_kept_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexico_client._weights_files.default_folder", lambda: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    model_of().save_pretrained(made)
    return made


def of_config(**changes: Any) -> Any:
    model = model_of()
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


def evaluated(model: Any) -> Any:
    return model.eval()


def other_head(model: Any) -> Any:
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    return model


def training_without_dropout(model: Any) -> Any:
    return model.train()


SAME: dict[str, Callable[[Any], Any]] = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "compiled-parallel": lambda model: torch.compile(nn.DataParallel(model)),
    "decoder": lambda model: model.get_decoder(),
    "compiled-decoder": lambda model: torch.compile(model.get_decoder()),
    "other-head": other_head,
    "unknown-entry": lambda model: of_config(colour_of_the_house="red"),
    "dropout": lambda model: of_config(attention_dropout=0.25),
    "settings": lambda model: of_config(
        use_cache=False, output_attentions=False, output_hidden_states=True, return_dict=False
    ),
    "attention": lambda model: llama(attn_implementation="eager"),
    "tokens": lambda model: of_config(eos_token_id=5, pad_token_id=0),
    "training": training_without_dropout,
    "copied": copy.deepcopy,
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_keys_and_values(name: str) -> None:
    assert weights_fingerprint(SAME[name](model_of())) == weights_fingerprint(model_of())


@pytest.mark.parametrize("name", [name for name in SAME if name != "other-head"])
def test_the_same_files(folder: Path, name: str) -> None:
    model = LlamaForCausalLM.from_pretrained(folder)
    assert weights_fingerprint(SAME[name](model)) in (
        fingerprint_files(folder),
        weights_fingerprint(model_of()),  # models that the case makes itself
    )


def frequencies(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(1.001)


def scaled_rotation(model: Any) -> None:
    model.model.rotary_emb.attention_scaling = 1.2


def a_weight(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0, 0] += 1e-3


def training_with_dropout(model: Any) -> None:
    model.config.attention_dropout = 0.5
    model.train()


def rounded(model: Any) -> None:
    model.to(torch.bfloat16).to(torch.float32)


def sharper(*given: Any, **named: Any) -> Any:
    """Attention of a user's own."""
    return ALL_ATTENTION_FUNCTIONS["sdpa"](*given, **{**named, "scaling": 1.0})


def attention_of_ones_own(model: Any) -> None:
    AttentionInterface.register("sharper", sharper)
    AttentionMaskInterface.register("sharper", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation("sharper")


OTHER: dict[str, Callable[[Any], Any]] = {
    "attention": attention_of_ones_own,
    "inv-freq": frequencies,
    "rotary-scaling": scaled_rotation,
    "a-weight": a_weight,
    "dropout-in-training": training_with_dropout,
    "rounded": rounded,
    "epsilon": lambda model: setattr(model.config, "rms_norm_eps", 1e-3),
    "rope": lambda model: model.config.rope_parameters.update(rope_theta=5e5),
    "dtype": lambda model: model.to(torch.bfloat16),
    "window": lambda model: setattr(model.config, "sliding_window", 16),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_keys_and_values(folder: Path, name: str) -> None:
    """Before the first look as after it, and whether there are files or not."""
    before = weights_fingerprint(model_of())
    model, late = model_of(), model_of()
    OTHER[name](model)
    assert weights_fingerprint(model) != before
    assert weights_fingerprint(late) == before
    OTHER[name](late)
    assert weights_fingerprint(late) == weights_fingerprint(model)
    loaded = LlamaForCausalLM.from_pretrained(folder)
    assert weights_fingerprint(loaded) == fingerprint_files(folder)
    OTHER[name](loaded)
    assert weights_fingerprint(loaded) not in (before, fingerprint_files(folder))


@pytest.mark.parametrize("name", ["inv-freq", "rotary-scaling", "dropout-in-training"])
def test_a_given_fingerprint_notices_too(tmp_path: Path, name: str) -> None:
    model = model_of()
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path) as client:
        shared = HuggingFaceCache(client, model, codec="raw", weights=bytes(32))
        assert shared.spec.weights == bytes(32)
        OTHER[name](model)
        with pytest.raises(ConfigurationError, match="weights or adapters changed"):
            shared.load([1, 2, 3])


def test_files_are_the_identity_of_every_class_that_loads_them(
    folder: Path, tmp_path: Path
) -> None:
    files = fingerprint_files(folder)
    whole, bare = LlamaForCausalLM.from_pretrained(folder), LlamaModel.from_pretrained(folder)
    assert weights_fingerprint(whole) == weights_fingerprint(bare) == files
    whole.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    again = LlamaForCausalLM.from_pretrained(tmp_path / "shards")
    assert weights_fingerprint(again) == fingerprint_files(tmp_path / "shards") == files
    assert weights_fingerprint(model_of()) != files, "no files, no fingerprint of them"


def test_a_cast_at_load_is_that_of_the_files(folder: Path) -> None:
    """The dtype is in the geometry. A part that is cast alone is another network."""
    files = fingerprint_files(folder)
    cast = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert weights_fingerprint(cast) == files
    with torch.no_grad():
        cast.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    assert weights_fingerprint(cast) != files
    partly = LlamaForCausalLM.from_pretrained(folder)
    partly.model.layers[1].to(torch.bfloat16)
    assert weights_fingerprint(partly) != files


def test_files_that_are_other_ones_by_now(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "model"
    model_of().save_pretrained(made)
    model = LlamaForCausalLM.from_pretrained(made)
    other = model_of(rms_norm_eps=1e-3)
    a_weight(other)
    other.save_pretrained(tmp_path / "other")
    for file in (tmp_path / "other").iterdir():
        file.replace(made / file.name)  # written into, it would change the model that has it mapped
    assert weights_fingerprint(model) not in (fingerprint_files(made), fingerprint_files(folder))
    assert weights_fingerprint(model) == weights_fingerprint(model_of())


def test_a_folder_that_says_otherwise(tmp_path: Path) -> None:
    model_of().save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, rms_norm_eps=1e-3)
    assert weights_fingerprint(model) == weights_fingerprint(model_of(rms_norm_eps=1e-3))
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mistral"}))
    assert weights_fingerprint(model) == weights_fingerprint(model_of())


class Louder(LlamaForCausalLM):
    """Code of someone's own, which may do anything before the decoder."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        return super().forward(inputs_embeds=self.model.embed_tokens(input_ids) * 2, **kwargs)


def test_code_of_someones_own_is_not_taken_for_its_decoder(folder: Path) -> None:
    louder = Louder.from_pretrained(folder)
    assert weights_fingerprint(louder) != weights_fingerprint(louder.get_decoder())
    assert weights_fingerprint(louder) != fingerprint_files(folder)
    assert weights_fingerprint(louder.get_decoder()) == fingerprint_files(folder)


def test_looking_changes_nothing(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder)
    state = torch.get_rng_state()
    weights_fingerprint(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_tied_weights_are_those_of_the_embedding(tmp_path: Path) -> None:
    made = model_of(tie_word_embeddings=True)
    made.save_pretrained(tmp_path)
    tied = LlamaForCausalLM.from_pretrained(tmp_path)
    assert weights_fingerprint(tied) == fingerprint_files(tmp_path)
    other_head(tied)
    assert weights_fingerprint(tied) not in (fingerprint_files(tmp_path), weights_fingerprint(made))
