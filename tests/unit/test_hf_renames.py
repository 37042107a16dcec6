"""Models whose tensors transformers renames while it loads them are known by their files too, as
long as the names alone differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, conversion_mapping
from transformers.core_model_loading import WeightRenaming

from lexico_client import fingerprint_files
from lexico_client.engines.hf._renames import load_names
from lexico_client.hf import weights_fingerprint
from tests.support.saved_model import TINY, save_tiny
from tests.unit.test_hf_inputs import llava


@pytest.fixture(autouse=True)
def no_kept_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexico_client._weights_files.default_folder", lambda: None)


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


def exchange(model: Any) -> None:
    """The same tensors, two of them in each other's place."""
    first, second = (dict(layer.named_parameters()) for layer in model.get_decoder().layers[:2])
    name = "self_attn.k_proj.weight"
    with torch.no_grad():
        kept = first[name].clone()
        first[name].copy_(second[name])
        second[name].copy_(kept)


def change(model: Any) -> None:
    with torch.no_grad():
        model.get_decoder().layers[1].mlp.up_proj.weight[0, 0] += 1


def test_a_model_that_is_saved_under_other_names(tmp_path: Path) -> None:
    """Its decoder lies as `language_model.model` in the files, and elsewhere in memory."""
    made = llava()
    made.save_pretrained(tmp_path)
    model: Any = type(made).from_pretrained(tmp_path).eval()
    assert names_in(tmp_path) != set(model.state_dict())
    files = fingerprint_files(tmp_path)
    assert weights_fingerprint(model) == files
    for wrong in (exchange, change):
        model = type(made).from_pretrained(tmp_path).eval()
        wrong(model)
        assert weights_fingerprint(model) != files, wrong.__name__


@pytest.fixture
def renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, str], list[Any]], Path]:
    """Saves a model with other names, and declares how they are to be loaded."""

    def make(renames: dict[str, str], mapping: list[Any]) -> Path:
        folder = save_tiny(tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        for old, new in renames.items():
            tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        known = conversion_mapping.get_checkpoint_conversion_mapping
        declared = {"llama": mapping}
        monkeypatch.setattr(
            conversion_mapping,
            "get_checkpoint_conversion_mapping",
            lambda kind: declared.get(kind) or known(kind),
        )
        return folder

    return make


def test_names_that_are_declared(renamed: Any) -> None:
    mapping = [WeightRenaming(r"\.blocks\.", ".layers."), WeightRenaming("attn_key", "k_proj")]
    folder = renamed({".layers.": ".blocks.", "k_proj": "attn_key"}, mapping)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert weights_fingerprint(model) == fingerprint_files(folder)
    exchange(model)
    assert weights_fingerprint(model) != fingerprint_files(folder)


def test_without_the_mapping_nothing_is_proven(
    renamed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is none of the promised interfaces: a later release may be without, or raise."""
    folder = renamed({".layers.": ".blocks."}, [WeightRenaming(r"\.blocks\.", ".layers.")])
    model = AutoModelForCausalLM.from_pretrained(folder)

    def broken(*_: object) -> Any:
        raise RuntimeError("moved")

    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", broken)
    assert load_names(model, ["a"]) == {}
    assert weights_fingerprint(model) != fingerprint_files(folder)
    monkeypatch.delattr(conversion_mapping, "get_model_conversion_mapping")
    assert load_names(model, ["a"]) == {}


def test_two_tensors_under_one_name_prove_nothing(renamed: Any) -> None:
    folder = renamed({"k_proj": "attn_key"}, [WeightRenaming("attn_key", "k_proj")])
    model = AutoModelForCausalLM.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.{}.weight".format
    tensors[name("k_proj")] = tensors[name("attn_key")] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert weights_fingerprint(model) != fingerprint_files(folder)


def test_fused_tensors_are_hashed_as_they_are(tmp_path: Path) -> None:
    """Experts that lie one by one in the files, and as one tensor in memory."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**TINY, num_local_experts=2, num_experts_per_tok=1)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert names_in(tmp_path) != set(model.state_dict())
    assert weights_fingerprint(model) == weights_fingerprint(again)
    assert weights_fingerprint(model) != fingerprint_files(tmp_path)


def test_a_head_that_is_tied_needs_no_place_of_its_own(tmp_path: Path) -> None:
    """In a model that counts as a whole."""
    made = llava()
    made.config.tie_word_embeddings = made.config.text_config.tie_word_embeddings = True
    made.tie_weights()
    made.save_pretrained(tmp_path)
    model: Any = type(made).from_pretrained(tmp_path)
    assert not any("lm_head" in name for name in names_in(tmp_path))
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert weights_fingerprint(model) == fingerprint_files(tmp_path)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert weights_fingerprint(model) != fingerprint_files(tmp_path)
