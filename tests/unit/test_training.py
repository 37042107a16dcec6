"""Dictionary learning recovers what was planted; a training run resumes to the same bytes."""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from lexico_codec.codecs.packed.codec import PackedCodec, allocate
from lexico_codec.sets.dictionary import AtomSet, DictionarySet
from lexico_lab.models import LoadedModel, load_model
from lexico_lab.training import costs, dictionaries, options, state
from lexico_lab.training import run as runner
from lexico_lab.training.learn import LearnSettings, learn
from lexico_lab.training.run import error_table, train
from lexico_lab.training.sample import cut_windows
from lexico_lab.training.settings import TrainSettings
from lexico_proto.errors import ConfigurationError, InvalidInput
from tests.support.tiny_evaluation import letters as tokenizer


def planted(atoms: Tensor, vectors: int, sparsity: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    picks = torch.rand(vectors, len(atoms), generator=generator).argsort(1)[:, :sparsity]
    coefficients = torch.randn(vectors, sparsity, generator=generator)
    return (atoms[picks] * coefficients[:, :, None]).sum(1)


def unit_rows(rows: int, m: int, seed: int) -> Tensor:
    drawn = torch.randn(rows, m, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


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


@pytest.fixture
def settings(tmp_path: Path) -> TrainSettings:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox <unk> jumps over the lazy dog. 0123456789\n" * 20)
    return TrainSettings(
        model="tiny",
        text=text,
        out=tmp_path / "set.safetensors",
        state=tmp_path / "state",
        learn=LearnSettings(atoms=40, sparsity=2, vectors=4000, batch=500),
        window_lengths=(64, 32),
    )


@pytest.fixture
def packed(settings: TrainSettings) -> TrainSettings:
    return replace(settings, codec="lexico-packed")


class TestRun:
    def test_writes_a_set_that_loads(self, tiny: LoadedModel, settings: TrainSettings) -> None:
        made = train(settings, tiny)
        read = DictionarySet.load(settings.out)
        assert read.digest == made.digest
        assert (read.layers, read.head_dim) == (2, 8)
        assert (read.info.model, read.info.kv_heads, read.info.sparsity) == ("tiny", 2, 2)
        assert read.info.rope["pairing"] == "half"
        table = error_table(read.info)
        assert table.count("\n") == 3
        assert "mean" in table

    def test_interrupted_run_leaves_no_artefact_and_resumes_to_the_same_bytes(
        self,
        tiny: LoadedModel,
        settings: TrainSettings,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        whole = train(settings, tiny)
        (tmp_path / "second").mkdir()
        second = replace(
            settings, out=tmp_path / "second" / settings.out.name, state=tmp_path / "second.state"
        )
        stop_after(monkeypatch, dictionaries, "sample", 5)
        with pytest.raises(KeyboardInterrupt):
            train(second, tiny)
        assert not second.out.exists()
        stop_after(monkeypatch, dictionaries, "sample", 3)
        with pytest.raises(KeyboardInterrupt):
            train(second, tiny)
        monkeypatch.undo()
        stop_after(monkeypatch, dictionaries, "work_through", 2)
        with pytest.raises(KeyboardInterrupt):
            train(second, tiny)
        assert not second.out.exists()
        monkeypatch.undo()
        learned: list[int] = []

        def counted(*arguments: Any) -> Any:
            learned.append(1)
            return learn(*arguments)

        monkeypatch.setattr(state, "learn", counted)
        assert train(second, tiny).to_bytes() == whole.to_bytes()
        assert len(learned) == 2, "finished dictionaries were learned again"

    def test_packed_set_is_of_centred_keys_before_rope(
        self, tiny: LoadedModel, packed: TrainSettings
    ) -> None:
        made = train_packed(packed, tiny)
        assert made.unrotated
        assert "--codec lexico-packed" in made.info.command
        assert made.info.training["codec"] == "lexico-packed"
        samples = packed.state / "samples"
        keys = torch.frombuffer(bytearray((samples / "00.key.f16").read_bytes()), dtype=torch.half)
        windows = cut_windows(packed.text.read_text(), tiny.tokenizer, 240_000, (64, 32))
        rows = sum(len(window) - 4 for window in windows[: -max(1, len(windows) // 10)])
        mean = keys.view(-1, 2, 8)[:rows].double().mean(0)
        torch.testing.assert_close(made.means(0, 1)[0].double(), mean, atol=1e-3, rtol=1e-3)
        tensors = load(made.to_bytes())
        assert tensors["layers.01.value.atoms"].dtype == torch.int8
        assert int(tensors["layers.01.value.atoms"].abs().max()) == 127
        assert made.errors is not None, "the set says how to share out atoms"
        given = allocate(made.errors.flatten(0, 1).double().tolist(), [8] * 4, 2)
        assert (min(given) >= 1, sum(given)) == (True, 8)

    def test_packed_run_resumes_and_spreads_to_the_same_bytes(
        self,
        tiny: LoadedModel,
        packed: TrainSettings,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        whole = train(packed, tiny)
        second = replace(packed, state=tmp_path / "second.state")
        stop_after(monkeypatch, dictionaries, "sample", 5)
        with pytest.raises(KeyboardInterrupt):
            train(second, tiny)
        monkeypatch.undo()
        stop_after(monkeypatch, dictionaries, "work_through", 2)
        with pytest.raises(KeyboardInterrupt):
            train(second, tiny)
        monkeypatch.undo()
        stop_after(monkeypatch, costs, "table_costs", 3)
        with pytest.raises(KeyboardInterrupt):
            train(replace(second, workers=2), tiny)
        monkeypatch.undo()
        assert train(second, tiny).to_bytes() == whole.to_bytes()
        monkeypatch.setattr(costs, "table_costs", lambda *_: pytest.fail("measured again"))
        assert train(second, tiny).to_bytes() == whole.to_bytes()
        (second.state / "costs.0.safetensors").write_bytes(b"spoilt")
        with pytest.raises(ConfigurationError, match=r"costs\.0"):
            train(second, tiny)

    def test_importance_weighs_the_errors(self, tiny: LoadedModel, packed: TrainSettings) -> None:
        plain = train_packed(packed, tiny, torch.ones(2, 2)).errors
        importance = torch.tensor([[1.0, 0.0], [0.5, 3.0]])
        # Of the same state: nothing is learned again.
        weighed = train_packed(packed, tiny, importance)
        assert plain is not None
        assert weighed.errors is not None
        assert plain.shape == (2, 2, 9)
        assert bool((plain[:, :, 1] > 0).all())
        assert bool((plain[:, :, 8] < 1e-6).all())
        expected = plain[:, :, 1:] * importance.pow(0.75)[:, :, None]
        torch.testing.assert_close(weighed.errors[:, :, 1:], expected)
        firsts = weighed.errors[:, :, 0] - weighed.errors[:, :, 1]
        seconds = weighed.errors[:, :, 1] - weighed.errors[:, :, 2]
        assert float(firsts.min()) > float(seconds.max()), "a first atom before any second one"
        assert weighed.info.training["importance"] != ""
        nothing = train_packed(packed, tiny, torch.zeros(2, 2)).errors
        assert nothing is None, "nothing to share out by"
        for wrong in (torch.ones(2), -importance, importance / 0):
            with pytest.raises(InvalidInput, match="importance"):
                train(packed, tiny, wrong)
        with pytest.raises(InvalidInput, match="importance"):
            train(replace(packed, codec="lexico"), tiny, importance)
        with pytest.raises(ConfigurationError, match="another codec"):
            train(replace(packed, codec="lexico"), tiny)
        with pytest.raises(ConfigurationError, match="codec 'other'"):
            replace(packed, codec="other")

    def test_costs_are_those_of_one_coded_table(
        self, tiny: LoadedModel, packed: TrainSettings
    ) -> None:
        # All tables get the same number of atoms.
        made = train_packed(packed, tiny, torch.zeros(2, 2))
        samples = dictionaries.samples_of(packed, tiny)
        mute = copy.deepcopy(tiny.model)
        mute.model.layers[1].self_attn.o_proj.weight.data.zero_()
        mute.model.layers[0].self_attn.o_proj.weight.data.mul_(100)
        mute.model.layers[0].self_attn.q_proj.weight.data.mul_(100)
        mute.lm_head.weight.data.mul_(50)  # as drawn all its predictions are alike
        ids = samples.windows[-1]
        found = list(costs.table_costs(mute, ids, PackedCodec(sparsity=2), made, samples.rope))
        finer = list(costs.table_costs(mute, ids, PackedCodec(sparsity=6), made, samples.rope))
        assert all(kl > 1e-4 for kl, _ in found[:2])
        assert all(kl < 1e-6 for kl, _ in found[2:]), "what nothing attends to costs nothing"
        assert all(one < other for (_, one), (_, other) in zip(finer, found, strict=True))
        mute.lm_head.weight.data.fill_(torch.nan)
        with pytest.raises(InvalidInput, match="not finite"):
            list(costs.table_costs(mute, ids, PackedCodec(sparsity=2), made, samples.rope))

    def test_workers_do_not_change_the_bytes(
        self, tiny: LoadedModel, settings: TrainSettings, tmp_path: Path
    ) -> None:
        one = train(settings, tiny).to_bytes()
        two = replace(settings, workers=2, state=tmp_path / "two")
        assert train(two, tiny).to_bytes() == one

    def test_state_of_another_configuration_is_refused(
        self, tiny: LoadedModel, settings: TrainSettings
    ) -> None:
        train(settings, tiny)
        other = replace(settings, learn=replace(settings.learn, seed=1))
        with pytest.raises(ConfigurationError, match="another seed"):
            train(other, tiny)
        (settings.state / "run.json").write_text("{")
        with pytest.raises(ConfigurationError, match="state"):
            train(settings, tiny)

    def test_spoilt_state_is_named(self, tiny: LoadedModel, settings: TrainSettings) -> None:
        train(settings, tiny)
        (settings.state / "00.key.safetensors").write_bytes(b"junk")
        with pytest.raises(ConfigurationError, match=r"00\.key"):
            train(settings, tiny)
        (settings.state / "00.key.safetensors").unlink()
        (settings.state / "samples" / "00.key.f16").write_bytes(b"junk")
        with pytest.raises(ConfigurationError, match=r"00\.key"):
            train(settings, tiny)

    @pytest.mark.parametrize("letters", [0, 63, 95, 150])
    def test_too_little_text(
        self, tiny: LoadedModel, settings: TrainSettings, letters: int
    ) -> None:
        settings.text.write_text("x" * letters)
        with pytest.raises(InvalidInput, match="text"):
            train(settings, tiny)
        assert not settings.out.exists()
        assert not settings.state.exists()

    def test_unusable_paths(self, tiny: LoadedModel, settings: TrainSettings) -> None:
        absent = settings.out.parent / "absent"
        with pytest.raises(ConfigurationError, match="out"):
            train(replace(settings, out=absent / "set.safetensors"), tiny)
        with pytest.raises(ConfigurationError, match="text"):
            train(replace(settings, text=absent), tiny)
        with pytest.raises(ConfigurationError, match="state"):
            train(replace(settings, state=settings.text), tiny)

    def test_command_line_runs_and_clears_its_state(
        self, tiny: LoadedModel, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner, "load_model", lambda *_: tiny)
        settings.text.write_text("The quick brown fox jumps over the lazy dog.\n" * 200)
        parser = argparse.ArgumentParser()
        options.add_arguments(parser)
        line = f"--model tiny --text {settings.text} --out {settings.out} --atoms 40 --sparsity 2"
        given = parser.parse_args([*line.split(), "--vectors", "900", "--workers", "1"])
        told = options.run(given).shown
        assert DictionarySet.load(settings.out).digest.hex() in told
        assert sorted(p.name for p in settings.out.parent.iterdir()) == [
            "set.safetensors",
            "text.txt",
        ]


def train_packed(*arguments: Any) -> AtomSet:
    made = train(*arguments)
    assert isinstance(made, AtomSet)
    return made


def stop_after(patch: pytest.MonkeyPatch, module: Any, name: str, steps: int) -> None:
    """Ctrl-C after so many steps of a generator."""
    real = getattr(module, name)

    def cut_short(*args: Any) -> Any:
        for i, step in enumerate(real(*args)):
            yield step
            if i + 1 == steps:
                raise KeyboardInterrupt

    patch.setattr(module, name, cut_short)


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot load"):
        load_model(str(tmp_path))
