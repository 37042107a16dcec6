"""Dictionary learning recovers what was planted; a training run resumes to the same bytes."""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load
from torch import Tensor
from transformers import DynamicCache

from lexico_codec.codecs.packed.codec import PackedCodec, allocate
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.hf_inputs import cache_inputs
from lexico_codec.kernels.pursuit.coding import encode, reconstruct
from lexico_codec.rope import rotate
from lexico_codec.sets.dictionary import DictionarySet
from lexico_lab.models import LoadedModel, load_model
from lexico_lab.training import costs, dictionaries, options, state
from lexico_lab.training import run as runner
from lexico_lab.training.importance import attention_energy, recorded_importance, training_weights
from lexico_lab.training.learn import LearnSettings, error_curve, held_out_errors, learn
from lexico_lab.training.run import TrainSettings, error_table, train
from lexico_lab.training.sample import Samples, cut_windows, sample
from lexico_proto.errors import ConfigurationError, InvalidInput, NonFiniteCache, ShapeMismatch


def planted(atoms: Tensor, vectors: int, sparsity: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    picks = torch.rand(vectors, len(atoms), generator=generator).argsort(1)[:, :sparsity]
    coefficients = torch.randn(vectors, sparsity, generator=generator)
    return (atoms[picks] * coefficients[:, :, None]).sum(1)


def unit_rows(rows: int, m: int, seed: int) -> Tensor:
    drawn = torch.randn(rows, m, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


class TestLearn:
    truth: ClassVar[Tensor] = unit_rows(48, 24, 0)
    train_set: ClassVar[Tensor] = planted(truth, 6000, 3, 1)
    held_out: ClassVar[Tensor] = planted(truth, 500, 3, 2)
    settings: ClassVar[LearnSettings] = LearnSettings(64, 3, 60_000, 2000, seed=5)

    def test_recovers_planted_atoms(self) -> None:
        made = learn(self.train_set, self.held_out, self.settings)
        best_possible, _ = held_out_errors(self.truth, self.held_out, 3)
        untrained, _ = held_out_errors(
            torch.nn.functional.normalize(self.train_set[:64], dim=1), self.held_out, 3
        )
        assert made.relative_error < best_possible + 0.25 * (untrained - best_possible)
        assert made.atoms.shape == (64, 24)
        torch.testing.assert_close(
            made.atoms.float().norm(dim=1), torch.ones(64), atol=1e-3, rtol=0
        )

    def test_reported_errors_are_those_of_the_shipped_atoms(self) -> None:
        made = learn(self.train_set, self.held_out, self.settings)
        again = held_out_errors(made.atoms, self.held_out, 3)
        assert (made.relative_error, made.energy_error) == again

    def test_same_seed_same_atoms(self) -> None:
        first = learn(self.train_set, self.held_out, self.settings)
        again = learn(self.train_set, self.held_out, self.settings)
        other = learn(self.train_set, self.held_out, replace(self.settings, seed=6))
        assert torch.equal(first.atoms, again.atoms)
        assert not torch.equal(first.atoms, other.atoms)

    def test_dead_atoms_are_revived(self) -> None:
        # All atoms start in one corner of the data; the rest is only met by reviving.
        corner = 5 * unit_rows(1, 24, 7) + 1e-3 * unit_rows(400, 24, 8)
        few = LearnSettings(64, 3, 120_000, 2000)
        vectors = torch.cat([corner.repeat(200, 1), self.train_set[:600]])
        made = learn(vectors, self.held_out, few)
        assert made.revived > 0
        alone = learn(corner, self.held_out, replace(few, vectors=2000))
        assert made.relative_error < alone.relative_error

    def test_zero_vectors_do_no_harm(self) -> None:
        vectors = torch.cat([self.train_set, torch.zeros(2000, 24)])
        made = learn(vectors, torch.cat([self.held_out, torch.zeros(9, 24)]), self.settings)
        assert made.relative_error < 0.3

    def test_bad_input_is_named(self) -> None:
        few = replace(self.settings, vectors=1000)
        with pytest.raises(InvalidInput, match="train"):
            learn(self.train_set[:63], self.held_out, few)
        with pytest.raises(InvalidInput, match="train"):
            learn(torch.zeros(100, 24), self.held_out, few)
        with pytest.raises(ShapeMismatch, match="held_out"):
            learn(self.train_set, self.held_out[:, :5], few)
        with pytest.raises(NonFiniteCache, match="train"):
            learn(self.train_set / 0, self.held_out, few)
        with pytest.raises(InvalidInput, match="sparsity"):
            learn(self.train_set, self.held_out, replace(few, sparsity=25))
        with pytest.raises(InvalidInput, match="sparsity"):
            LearnSettings(atoms=4, sparsity=5)
        with pytest.raises(InvalidInput, match="vectors"):
            LearnSettings(vectors=0)


class Letters:
    """A tokenizer of single characters."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 64 for c in text]}


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
    return LoadedModel("tiny", LlamaForCausalLM(config).eval(), Letters())


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
        read.check_fits(2, 8)
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
        learned = []
        monkeypatch.setattr(state, "learn", lambda *a: learned.append(1) or learn(*a))
        assert train(second, tiny).to_bytes() == whole.to_bytes()
        assert len(learned) == 2, "finished dictionaries were learned again"

    def test_packed_set_is_of_centred_keys_before_rope(
        self, tiny: LoadedModel, packed: TrainSettings
    ) -> None:
        made = train(packed, tiny)
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
        plain = train(packed, tiny, torch.ones(2, 2)).errors
        importance = torch.tensor([[1.0, 0.0], [0.5, 3.0]])
        weighed = train(packed, tiny, importance)  # of the same state: nothing is learned again
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
        assert train(packed, tiny, torch.zeros(2, 2)).errors is None, "nothing to share out by"
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
        made = train(packed, tiny, torch.zeros(2, 2))  # all tables get the same number of atoms
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
        told = options.run(parser.parse_args([*line.split(), "--vectors", "900", "--workers", "1"]))
        assert DictionarySet.load(settings.out).digest.hex() in told
        assert sorted(p.name for p in settings.out.parent.iterdir()) == [
            "set.safetensors",
            "text.txt",
        ]


def stop_after(patch: pytest.MonkeyPatch, module: Any, name: str, steps: int) -> None:
    """Ctrl-C after so many steps of a generator."""
    real = getattr(module, name)

    def cut_short(*args: Any) -> Any:
        for i, step in enumerate(real(*args)):
            yield step
            if i + 1 == steps:
                raise KeyboardInterrupt

    patch.setattr(module, name, cut_short)


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


def test_error_curve_is_that_of_pursuit_with_every_number_of_atoms() -> None:
    atoms, vectors = unit_rows(40, 24, 0), planted(unit_rows(99, 24, 3), 700, 20, 4)
    vectors[3] = 0
    vectors[4] = 2 * atoms[7]
    curve = error_curve(atoms, vectors, 9)
    assert curve.shape == (10,)
    assert float(curve[0]) == pytest.approx(float(vectors.square().mean()))
    for s in (1, 5, 9):
        left = vectors - reconstruct(encode(vectors, atoms, s), atoms)
        assert float(curve[s]) == pytest.approx(float(left.square().mean()), rel=1e-4)
    whole = error_curve(atoms, vectors)
    assert whole.shape == (25,)
    assert bool((whole.diff() <= 0).all())
    assert float(whole[24]) < 1e-6


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


def test_weights_decide_where_the_error_goes() -> None:
    wanted, other = (
        planted(unit_rows(48, 24, 0), 3000, 3, 1),
        planted(unit_rows(48, 24, 9), 3000, 3, 2),
    )
    weights = torch.cat([torch.full((3000,), 1.95), torch.full((3000,), 0.05)])
    few = LearnSettings(48, 3, 40_000, 2000)
    both = torch.cat([wanted, other])
    weighted = learn(both, wanted[:500], few, weights)
    assert weighted.relative_error < learn(both, wanted[:500], few).relative_error
    with pytest.raises(ShapeMismatch, match="weights"):
        learn(both, wanted, few, weights[:5])


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot load"):
        load_model(str(tmp_path))
