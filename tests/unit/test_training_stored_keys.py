"""Sets of keys as they are stored: learned at many positions, serving pages at any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GPT2Config, LlamaConfig, LlamaForCausalLM

from lexico_codec.codecs import ResidualCodec
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.hf_inputs import cache_inputs
from lexico_codec.rope import rotate
from lexico_codec.sets.choose import choose
from lexico_codec.sets.dictionary import DictionarySet
from lexico_lab.caches import states_of
from lexico_lab.evaluation.fidelity import through_frames
from lexico_lab.evaluation.prefixes import ExactText
from lexico_lab.evaluation.ways import choose_ways, load_sets
from lexico_lab.models import LoadedModel
from lexico_lab.training import observe as observing
from lexico_lab.training import options
from lexico_lab.training.fit_settings import FitSettings
from lexico_lab.training.learn import LearnSettings
from lexico_lab.training.observe import WINDOW_TOKENS
from lexico_lab.training.run import train
from lexico_lab.training.sample import Sampler
from lexico_lab.training.settings import TrainSettings
from lexico_lab.training.stored_keys import first_position, moved, positions_of
from lexico_proto.errors import ConfigurationError, DictionaryMismatch
from tests.support.saved_model import TINY, letters
from tests.support.tiny_evaluation import letters as tokenizer
from tests.support.tiny_evaluation import tiny_settings
from tests.support.training_command import parsed

FAR = 1500
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 512,
}


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel("tiny", LlamaForCausalLM(LlamaConfig(**TINY)).eval(), tokenizer)


def cached(model: Any, ids: list[int], first: int = 0) -> Tensor:
    """`[layers, 2, heads, tokens, dim]` of a text that begins at a position."""
    cache = DynamicCache()
    positions = torch.arange(first, first + len(ids))[None]
    with torch.inference_mode():
        model(torch.tensor([ids]), position_ids=positions, **cache_inputs(model, cache))
    return states_of(cache)


def rope_of(model: Any) -> Rope:
    found = geometry_of(model.config, "float32").rope
    assert found is not None
    return found


def turned(states: Tensor, by: int, rope: Rope) -> Tensor:
    keys = states[:, 0]
    rows = moved(keys.reshape(-1, 1, keys.shape[-1]), by, rope)
    return torch.stack([rows.view_as(keys), states[:, 1]], 1)


# Where windows are taken to lie


@pytest.mark.parametrize("scaling", [{}, {"rope_parameters": YARN}], ids=["plain", "yarn"])
def test_a_text_further_back_has_its_keys_turned_and_its_values_as_they_were(
    scaling: dict[str, Any],
) -> None:
    """What is learned at many positions is what the model would have there."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY, **scaling)).eval()
    ids = [ord(c) % 64 for c in letters(60, seed=2)]
    near, far = cached(model, ids), cached(model, ids, FAR)
    torch.testing.assert_close(turned(near, FAR, rope_of(model)), far, atol=2e-3, rtol=2e-3)


def test_windows_begin_where_pages_of_prompts_lie() -> None:
    drawn = [first_position([seed] * 100, 10_000) for seed in range(4000)]
    assert min(drawn) < 20
    assert 9000 < max(drawn) <= 9900
    assert 0.4 < sum(at < 500 for at in drawn) / len(drawn) < 0.7  # half of the prompts are short
    assert drawn[7] == first_position((7,) * 100, 10_000)
    assert [first_position([1] * 100, most) for most in (0, 99, 100)] == [0, 0, 0]


def test_positions_are_those_of_the_model() -> None:
    geometry = Geometry(2, 2, 8, rope=Rope((1.0,)))
    config = LlamaConfig(**TINY)
    assert positions_of(config, geometry) == 2048
    assert positions_of(config, geometry, 300) == 300
    assert positions_of(LlamaConfig(**{**TINY, "max_position_embeddings": 1 << 20}), geometry) == (
        32768
    )
    without = geometry_of(GPT2Config(n_layer=1, n_head=2, n_embd=16), "float32")
    assert positions_of(GPT2Config(), without, 300) == 0


@pytest.mark.parametrize("scaling", [{}, {"rope_parameters": YARN}], ids=["plain", "yarn"])
def test_states_and_gradients_turn_together(scaling: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY, **scaling)).eval()
    geometry, rope = geometry_of(model.config, "float32"), rope_of(model)
    ids = [ord(c) % 64 for c in letters(WINDOW_TOKENS, seed=3)]

    def found(by: int | None) -> list[Tensor]:
        seen = observing._window(model, geometry, ids, torch.Generator().manual_seed(5), by)
        return [rows.float().view(len(rows), 2, 2, 2, 8) for rows in seen]  # layer, part, head

    (before, slopes), (states, gradients) = found(None), found(FAR)
    assert torch.equal(states[:, :, 1], before[:, :, 1])
    assert torch.equal(gradients[:, :, 1], slopes[:, :, 1])
    at = torch.arange(len(before)) + 4 + FAR
    for layer in (0, 1):
        keys = rotate(before[:, layer, 0], at, rope)
        torch.testing.assert_close(states[:, layer, 0], keys, atol=2e-2, rtol=2e-2)
        # What a move costs does not depend on the form that it is told in.
        moves = torch.randn(len(gradients), 2, 8, generator=torch.Generator().manual_seed(1))
        there = rotate(moves, at[: len(moves)], rope)
        told, same = (
            (a[:, layer, 0] * b).sum((1, 2)) for a, b in ((slopes, moves), (gradients, there))
        )
        torch.testing.assert_close(told, same, atol=1e-3, rtol=1e-3)


def test_samples_are_keys_further_back(tiny: LoadedModel) -> None:
    window = [ord(c) % 64 for c in letters(64, seed=4)]
    first = first_position(window, 2048)
    assert first > 0
    sampled = Sampler(tiny.model, 2, rope_of(tiny.model), 2048)(window)
    exact = turned(cached(tiny.model, window), first, rope_of(tiny.model))[:, :, :, 4:]
    made = torch.stack([torch.from_numpy(rows) for rows in sampled.states]).float()
    expected = exact.flatten(0, 1).transpose(1, 2)
    torch.testing.assert_close(made, expected, atol=5e-3, rtol=5e-3)


# Sets


def settings_in(folder: Path, codec: str = "lexico-residual") -> TrainSettings:
    text = folder / "text.txt"
    text.write_text(letters(4 * WINDOW_TOKENS))
    return TrainSettings(
        model="tiny",
        text=text,
        out=folder / f"{codec}.safetensors",
        state=folder / f"{codec}.state",
        learn=LearnSettings(atoms=16, sparsity=2, vectors=500),
        fit=FitSettings(atoms=16, vectors=300, joint=40),
        window_lengths=(128, 64),
        tokens=4 * WINDOW_TOKENS,
        codec=codec,
        keys_as_stored=True,
    )


@pytest.fixture(scope="module")
def made(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """A finished run; not to be written to."""
    settings = settings_in(tmp_path_factory.mktemp("made"))
    train(settings, tiny)
    return settings


def test_a_set_says_what_its_keys_are(tiny: LoadedModel, made: TrainSettings) -> None:
    read = DictionarySet.load(made.out)
    geometry = geometry_of(tiny.model.config, "float32")
    assert read.info.keys_as_stored
    assert read.info.rope == {}
    assert read.info.training["positions"] == 2048
    assert " --keys-as-stored" in read.info.command
    codec, _ = choose(ResidualCodec(), read, replace(geometry, rope=None))
    assert codec == ResidualCodec(sinks=0)
    with pytest.raises(DictionaryMismatch, match="position of these is known"):
        choose(ResidualCodec(), read, geometry)


@pytest.mark.parametrize("first", [0, FAR])
def test_pages_come_back_wherever_they_lie(
    first: int, tiny: LoadedModel, made: TrainSettings, tmp_path: Path
) -> None:
    """As `lexico eval` judges them: each page alone, first tokens among the others."""
    settings = tiny_settings(tmp_path, sets=(str(made.out),), codecs=("near",))
    geometry = geometry_of(tiny.model.config, "float32")
    sets = load_sets(settings.sets, geometry)
    _, way = choose_ways(settings, geometry, bytes(32), sets).ways  # the control comes first
    assert (way.alone, way.spec.geometry.rope) == (True, None)
    ids = [ord(c) % 64 for c in letters(96, seed=9)]
    states = turned(cached(tiny.model, ids), first, rope_of(tiny.model))
    out, shelf = through_frames(ExactText(tuple(ids), states, torch.empty(0)), way, 96)
    error = (out - states).norm() / states.norm()
    assert float(error) < 0.3
    assert not torch.equal(out[:, :, :, 16:20], states[:, :, :, 16:20])  # no first tokens of a page
    assert 0 < shelf.size < states.numel() * 4


def test_another_form_of_keys_is_another_run(tiny: LoadedModel, made: TrainSettings) -> None:
    for change in ({"keys_as_stored": False}, {"positions": 1024}):
        with pytest.raises(ConfigurationError, match=r"with another (keys, )?positions"):
            train(replace(made, **change), tiny)
    assert train(made, tiny).digest == DictionarySet.load(made.out).digest


@pytest.mark.parametrize("codec", ["lexico", "lexico-packed"])
def test_sets_of_dictionaries(codec: str, tiny: LoadedModel, tmp_path: Path) -> None:
    made = train(settings_in(tmp_path, codec), tiny)
    assert (made.info.keys_as_stored, made.info.rope) == (True, {})
    assert made.serves(codec)
    geometry = geometry_of(tiny.model.config, "float32")
    sets = load_sets([str(tmp_path / f"{codec}.safetensors")], geometry)
    settings = tiny_settings(tmp_path, codecs=(f'{codec}:{{"sparsity":4}}',))
    _, way = choose_ways(settings, geometry, bytes(32), sets).ways
    ids = [ord(c) % 64 for c in letters(64, seed=9)]
    states = cached(tiny.model, ids)
    out, _ = through_frames(ExactText(tuple(ids), states, torch.empty(0)), way, 64)
    assert float((out - states).norm() / states.norm()) < 0.6
    for page in range(0, 64, 16):  # each begins a sequence of its own
        assert torch.equal(out[:, :, :, page : page + 4], states[:, :, :, page : page + 4])


def test_options() -> None:
    line = ["--model", "m", "--text", "t", "--out", "a.b", "--device", "cpu", "--codec", "all"]
    asked = options.settings_of(parsed(*line, "--keys-as-stored", "--positions", "5000"))
    assert {(one.keys_as_stored, one.positions) for one in asked} == {(True, 5000)}
    assert all(one.command.endswith(" --keys-as-stored --positions 5000") for one in asked)
    assert {one.keys_as_stored for one in options.settings_of(parsed(*line))} == {False}
    for words in (["--positions", "5000"], ["--keys-as-stored", "--positions", "-1"]):
        with pytest.raises(ConfigurationError, match="positions"):
            options.settings_of(parsed(*line, *words))
