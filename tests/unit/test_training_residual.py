"""Training of codec lexico-residual: it resumes to the same bytes, and its gradients are right."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from lexico_codec.codecs import Place, ResidualCodec
from lexico_codec.codecs.codec import SINK_TOKENS
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.hf_inputs import cache_inputs
from lexico_codec.sets.dictionary import DictionarySet, TransformSet
from lexico_codec.sets.transform import QUALITIES, Transform
from lexico_lab.models import LoadedModel
from lexico_lab.training import options, residual
from lexico_lab.training import run as runner
from lexico_lab.training.fit import _bare
from lexico_lab.training.fit_settings import FitSettings, Held
from lexico_lab.training.observe import (
    WINDOW_TOKENS,
    Observations,
    observe,
)
from lexico_lab.training.residual import ResidualSettings, windows_of
from lexico_lab.training.run import train
from lexico_lab.training.settings import TrainSettings
from lexico_proto.errors import ConfigurationError, InvalidInput
from tests.support.coded_models import layers_of
from tests.support.residual_sets import transform_of
from tests.support.saved_model import TINY, letters
from tests.support.tiny_evaluation import letters as tokenizer


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel("tiny", LlamaForCausalLM(LlamaConfig(**TINY)).eval(), tokenizer)


def settings_in(folder: Path) -> TrainSettings:
    text = folder / "text.txt"
    text.write_text(letters(5 * WINDOW_TOKENS + 100))
    return TrainSettings(
        model="tiny",
        text=text,
        out=folder / "set.safetensors",
        state=folder / "state",
        fit=FitSettings(atoms=16, vectors=600, joint=40),
        codec="lexico-residual",
    )


@pytest.fixture
def settings(tmp_path: Path) -> TrainSettings:
    return settings_in(tmp_path)


@pytest.fixture(scope="module")
def finished(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """A run that was never stopped; not to be written to."""
    settings = settings_in(tmp_path_factory.mktemp("finished"))
    train(settings, tiny)
    return settings


@pytest.fixture
def own(finished: TrainSettings, tmp_path: Path) -> TrainSettings:
    """A copy of it."""
    return replace(finished, state=Path(shutil.copytree(finished.state, tmp_path / "state")))


def sound_round_trip(made: DictionarySet, model: Any, run_layers: int = 2) -> float:
    """Relative error of the finest quality on a cache of the model."""
    rope = geometry_of(model.config, "float32").rope
    cache = DynamicCache()
    ids = torch.tensor([[ord(c) % 64 for c in letters(90, seed=9)]])
    with torch.no_grad():
        model(ids, **cache_inputs(model, cache))
    pairs = [torch.stack([layer.keys[0], layer.values[0]]) for layer in layers_of(cache)]
    group = torch.stack(pairs).transpose(2, 3).contiguous()
    codec, out = ResidualCodec("near", run_layers=run_layers), torch.empty_like(group)
    for layer in range(0, 2, run_layers):
        part, place = group[layer : layer + run_layers].contiguous(), Place(layer, 0, rope)
        body = codec.encode(part, place, made)
        codec.decode(memoryview(body), place, made, out[layer : layer + run_layers])
    assert torch.equal(out[:, :, :SINK_TOKENS], group[:, :, :SINK_TOKENS])
    return float((out - group).norm() / group.norm())


class TestRun:
    def test_writes_a_set_that_serves(self, tiny: LoadedModel, finished: TrainSettings) -> None:
        made = train(finished, tiny)  # from what is there
        read = DictionarySet.load(finished.out)
        assert (read.digest, read.info) == (made.digest, made.info)
        assert read.serves("lexico-residual")
        assert (read.layers, read.head_dim, read.info.kv_heads, read.info.sparsity) == (2, 8, 2, 1)
        assert read.info.rope["pairing"] == "half"
        assert read.info.training["codec"] == "lexico-residual"
        assert "--codec lexico-residual" in read.info.command
        assert "--joint 40" in read.info.command
        transform = transform_of(read)
        assert (transform.runs, transform.selected.shape) == (1, (1, 40))
        steps = [transform.steps[quality] for quality in QUALITIES]
        assert steps == sorted(steps)
        assert sound_round_trip(made, tiny.model) < 0.3

    def test_components_are_uncorrelated_and_deviations_theirs(
        self, tiny: LoadedModel, finished: TrainSettings
    ) -> None:
        transform = TransformSet.load(finished.out).transform
        seen = observations(finished, tiny)
        rows = torch.cat([seen.states(window) for window in range(4)]).float().T
        components = transform.analyse(0, rows.reshape(4, 16, -1))
        measured = components.square().mean(1).sqrt()
        torch.testing.assert_close(measured, transform.deviations[0], rtol=0.02, atol=0)
        apart = torch.corrcoef(components)
        assert float(apart.square().sum() / len(apart)) < 1.5, "a sum of 64 if they were all alike"

    def test_runs_of_layers(self, tiny: LoadedModel, settings: TrainSettings) -> None:
        made = train(fitted(settings, run_layers=1, joint=0), tiny)
        transform = transform_of(made)
        assert (transform.runs, transform.run_layers, transform.selected.shape) == (2, 1, (2, 0))
        assert sound_round_trip(made, tiny.model, 1) < 0.3

    def test_interrupted_run_resumes_to_the_same_bytes(
        self,
        tiny: LoadedModel,
        finished: TrainSettings,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        whole = finished.out.read_bytes()
        second = settings_in(tmp_path)
        for windows in (1, 2):
            with monkeypatch.context() as patch:
                stop_after(patch, windows)
                with pytest.raises(KeyboardInterrupt):
                    train(second, tiny)
        assert observations(second, tiny).finished() == 3
        for stage in ("importance_of", "fit_bases", "fit_cross", "fit_rest", "_steps"):
            calls: list[int] = []
            with monkeypatch.context() as patch:
                patch.setattr(residual, stage, interrupted(calls))
                with pytest.raises(KeyboardInterrupt):
                    train(second, tiny)
            assert calls == [1]
            assert not second.out.exists()
        made = {path.name for path in second.state.iterdir()}
        assert made == {
            "run.json",
            "observations",
            "importance.safetensors",
            "bases.safetensors",
            "cross.safetensors",
            "rest.safetensors",
        }
        with monkeypatch.context() as patch:
            for stage in ("importance_of", "fit_bases", "fit_cross", "fit_rest"):
                patch.setattr(residual, stage, interrupted([]))
            assert train(second, tiny).to_bytes() == whole
            patch.setattr(residual, "_steps", interrupted([]))
            assert train(second, tiny).to_bytes() == whole

    def test_a_window_that_was_half_written_is_written_again(
        self, tiny: LoadedModel, settings: TrainSettings
    ) -> None:
        seen = observations(settings, tiny)
        assert list(observe(tiny, seen, 0)) == [0, 1, 2, 3, 4]
        before = {path.name: path.read_bytes() for path in seen.folder.iterdir()}
        (seen.folder / "progress.json").write_text('{"windows":3}')
        with (seen.folder / "states.f16").open("r+b") as f:
            f.truncate(len(before["states.f16"]) * 7 // 10)
        assert list(observe(tiny, seen, 0)) == [3, 4]
        assert {path.name: path.read_bytes() for path in seen.folder.iterdir()} == before
        assert list(observe(tiny, seen, 0)) == []

    def test_state_of_other_settings_is_refused(
        self, tiny: LoadedModel, own: TrainSettings
    ) -> None:
        changes: list[tuple[dict[str, Any], str]] = [
            ({"fit": replace(own.fit, joint=41)}, "joint"),
            ({"fit": replace(own.fit, run_layers=1)}, "run_layers"),
            ({"fit": replace(own.fit, seed=1)}, "seed"),
            ({"fit": replace(own.fit, atoms=17)}, "atoms"),
            ({"fit": replace(own.fit, blocks=2)}, "blocks"),
            ({"tokens": 4 * WINDOW_TOKENS}, "corpus, tokens"),
            ({"codec": "lexico", "window_lengths": (64,)}, "codec"),
        ]
        for change, named in changes:
            with pytest.raises(ConfigurationError, match=f"another .*{named}"):
                train(replace(own, **change), tiny)

    def test_another_text_behind_what_was_observed_is_refused(
        self, tiny: LoadedModel, own: TrainSettings, tmp_path: Path
    ) -> None:
        """Steps are measured on it."""
        fewer = replace(own, tokens=5 * WINDOW_TOKENS, text=tmp_path / "more.txt")
        fewer.text.write_text(letters(5 * WINDOW_TOKENS + 100))
        train(fewer, tiny)
        fewer.text.write_text(letters(5 * WINDOW_TOKENS + 100) + letters(WINDOW_TOKENS, seed=3))
        with pytest.raises(ConfigurationError, match="with another calibrated;"):
            train(fewer, tiny)

    @pytest.mark.parametrize(("filled", "most"), [(5, 9), (30, 5), (60, 40)])
    def test_steps_are_measured_on_windows_that_nothing_is_fitted_to(
        self, tiny: LoadedModel, tmp_path: Path, filled: int, most: int
    ) -> None:
        text = "".join(chr(65 + number % 26) * WINDOW_TOKENS for number in range(filled))
        settings = ResidualSettings("tiny", tmp_path, most * WINDOW_TOKENS, FitSettings(), "")
        windows = windows_of(settings, text, tiny)
        cut = [tuple(ord(c) % 64 for c in text[i:][:1024]) for i in range(0, len(text), 1024)]
        assert list(windows.observed) == cut[:most]
        first = Held.of(len(windows.observed)).held_out.start
        assert list(windows.calibrating) == cut[first:][:24]

    def test_spoilt_state_is_named(self, tiny: LoadedModel, own: TrainSettings) -> None:
        (own.state / "rest.safetensors").write_bytes(b"junk")
        with pytest.raises(ConfigurationError, match="rest"):
            train(own, tiny)
        folder = own.state / "observations"
        (own.state / "bases.safetensors").unlink()
        for name in ("states.f16", "gradients.f16", "scales.f32"):
            data = (folder / name).read_bytes()
            for spoil in (lambda path: path.write_bytes(b"junk"), lambda path: path.unlink()):
                spoil(folder / name)
                with pytest.raises(ConfigurationError, match=name):
                    train(own, tiny)
            (folder / name).write_bytes(data)
        (folder / "progress.json").write_text("[]")
        with pytest.raises(ConfigurationError, match="progress"):
            train(own, tiny)

    @pytest.mark.parametrize("count", [0, 1000, 4 * WINDOW_TOKENS - 1])
    def test_too_little_text(self, tiny: LoadedModel, settings: TrainSettings, count: int) -> None:
        settings.text.write_text(letters(count))
        with pytest.raises(InvalidInput, match="text"):
            train(settings, tiny)
        assert not settings.out.exists()
        assert not settings.state.exists()

    def test_unusable_paths(self, tiny: LoadedModel, settings: TrainSettings) -> None:
        absent = settings.out.parent / "absent"
        with pytest.raises(ConfigurationError, match="out"):
            train(replace(settings, out=absent / "set.safetensors"), tiny)
        with pytest.raises(ConfigurationError, match="state"):
            train(replace(settings, state=settings.text), tiny)
        settings.state.mkdir()
        (settings.state / "observations").write_text("a file")
        with pytest.raises(ConfigurationError, match="observations"):
            train(settings, tiny)

    def test_settings_that_no_set_could_hold_are_refused_at_once(
        self, tiny: LoadedModel, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused: list[tuple[dict[str, Any], str]] = [
            ({"atoms": 4097}, "4096"),
            ({"sparsity": 5}, "at most 4 atoms"),
            ({"run_layers": 3}, "run_layers"),
            ({"blocks": 3}, "blocks"),
        ]
        for change, named in refused:
            with pytest.raises(ConfigurationError, match=named):
                train(fitted(settings, **change), tiny)
        monkeypatch.setattr(residual, "MAX_DICTIONARY_BYTES", 2000)
        with pytest.raises(ConfigurationError, match="bytes"):
            train(settings, tiny)
        monkeypatch.setattr(residual, "MAX_COMPONENTS", 63)
        with pytest.raises(ConfigurationError, match="64 components"):
            train(settings, tiny)
        for name in ("joint", "run_layers", "sparsity"):
            with pytest.raises(ConfigurationError, match="negative"):
                fitted(settings, **{name: -1})
        for name in ("blocks", "atoms", "vectors"):
            with pytest.raises(ConfigurationError, match="positive"):
                fitted(settings, **{name: 0})
        assert not settings.state.exists()

    def test_command_line(
        self, tiny: LoadedModel, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner, "load_model", lambda *_: tiny)
        parser = argparse.ArgumentParser()
        options.add_arguments(parser)
        line = f"--codec lexico-residual --model tiny --text {settings.text} --out {settings.out}"
        given = parser.parse_args([*line.split(), "--vectors", "500", "--joint", "8"])
        told = options.run(given).shown
        made = DictionarySet.load(settings.out)
        assert made.digest.hex() in told
        assert all(quality in told for quality in QUALITIES)
        assert sorted(p.name for p in settings.out.parent.iterdir()) == [
            "set.safetensors",
            "text.txt",
        ]
        assert made.info.command.endswith("--joint 8 --run-layers 0 --blocks 1")

    def test_model_that_gives_nan_is_named(self, settings: TrainSettings) -> None:
        model = LlamaForCausalLM(LlamaConfig(**TINY)).eval()
        with torch.no_grad():
            model.model.layers[1].self_attn.v_proj.weight.mul_(1e6)
        with pytest.raises(InvalidInput, match="window 0"):
            train(settings, LoadedModel("tiny", model, tokenizer))


def fitted(settings: TrainSettings, **changes: Any) -> TrainSettings:
    """With another transform."""
    return replace(settings, fit=replace(settings.fit, **changes))


def observations(settings: TrainSettings, loaded: LoadedModel) -> Observations:
    """Of a run with these settings."""
    text = settings.text.read_text()
    ids = loaded.tokenizer(text)["input_ids"]
    windows = tuple(
        tuple(ids[at : at + WINDOW_TOKENS])
        for at in range(0, len(ids) - WINDOW_TOKENS + 1, WINDOW_TOKENS)
    )
    geometry = geometry_of(loaded.model.config, "float32")
    return Observations(settings.state / "observations", windows, geometry)


def stop_after(patch: pytest.MonkeyPatch, windows: int) -> None:
    """Ctrl-C after so many windows."""

    def cut_short(*args: Any) -> Any:
        for i, step in enumerate(observe(*args)):
            yield step
            if i + 1 == windows:
                raise KeyboardInterrupt

    patch.setattr(residual, "observe", cut_short)


def interrupted(calls: list[int]) -> Callable[..., Any]:
    def stop(*_: Any) -> None:
        calls.append(1)
        raise KeyboardInterrupt

    return stop


# Observations


def test_a_transform_of_a_run_is_a_transform() -> None:
    """`_bare`, which the stages of fitting use, fits what the codec does."""
    bases = {
        "means": torch.zeros(4, 2, 8),
        "bases": torch.eye(16).expand(4, 1, 16, 16).half(),
        "scales": torch.ones(4),
        "variances": torch.ones(4, 16),
    }
    made: Transform = _bare(
        bases, torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, 0), FitSettings(1)
    )
    x = torch.randn(2, 16, 5)
    assert torch.equal(made.analyse(1, x), x.view(32, 5))
    assert (made.runs, made.run_layers, made.sparsity) == (2, 1, 0)
    assert (Held.of(4).fitted, Held.of(4).held_out) == (range(3), range(3, 4))
    assert (Held.of(100).held_out, len(Held.of(1000).some())) == (range(90, 100), 50)
