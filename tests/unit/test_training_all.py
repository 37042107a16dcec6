"""One run for several codecs: options, importance, equal bytes; devices and atoms that are none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lexico_codec.hf_geometry import geometry_of
from lexico_codec.sets.dictionary import AtomSet, DictionarySet
from lexico_lab.models import LoadedModel, load_model
from lexico_lab.training import costs, dictionaries, learn, options, residual
from lexico_lab.training import run as runner
from lexico_lab.training.fit_settings import FitSettings
from lexico_lab.training.observe import Observations, Observer
from lexico_lab.training.run import read_importance, train
from lexico_lab.training.sample import Sampler, cut_windows
from lexico_lab.training.settings import TrainSettings
from lexico_lab.training.state import DictionaryState
from lexico_proto.errors import ConfigurationError, InvalidInput
from tests.support.cli_shapes import SHAPES, misfits
from tests.support.residual_sets import transform_of
from tests.support.saved_model import save_tiny
from tests.support.training_command import NAMES, asked, parsed


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(save_tiny(tmp_path_factory.mktemp("tiny"))))


@pytest.fixture(scope="module")
def finished(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all three sets and of what led to them; not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    few = ["--codec", "all", "--joint", "40", "--state", str(folder / "state")]
    runner.train_all(options.settings_of(asked(folder, *few)), tiny)
    return folder


class TestAll:
    def test_bytes_are_those_of_own_runs(
        self, tiny: LoadedModel, finished: Path, tmp_path: Path
    ) -> None:
        own: dict[str, list[str]] = {
            "lexico-residual": ["--joint", "40"],
            "lexico-packed": [],
            "lexico": [],
        }
        text, few = finished / "text.txt", ["--tokens", "114688", "--device", "cpu"]
        for codec, more in own.items():
            line = ["--model", "tiny", "--text", str(text), "--out", str(tmp_path / NAMES[codec])]
            if codec != "lexico-residual":
                more = [*more, "--atoms", "16", "--sparsity", "2", "--vectors", "1500"]
            args = parsed(*line, "--codec", codec, *few, *more, "--workers", "1")
            (made,) = runner.train_all(options.settings_of(args), tiny)
            document = {"sets": [made.document()], "registered": []}
            assert misfits(json.loads(json.dumps(document)), SHAPES["train"]) == []
            assert made.document()["digest"] == made.dictionary.digest.hex()
            assert made.dictionary.to_bytes() == (finished / NAMES[codec]).read_bytes()
            assert f"--out {NAMES[codec]}" in made.dictionary.info.command

    def test_it_goes_on_from_every_point(
        self,
        tiny: LoadedModel,
        finished: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        runs = options.settings_of(asked(tmp_path, "--codec", "all", "--joint", "40"))
        packed, lexico = runs[1].state, runs[2].state
        points: list[tuple[Any, str, int, Path]] = [
            (residual, "observe", 2, runs[0].state / "observations"),
            (residual, "_steps", 0, runs[0].state / "rest.safetensors"),
            (dictionaries, "sample", 1, packed / "samples"),
            (dictionaries, "work_through", 2, packed / "00.value.safetensors"),
            (dictionaries, "work_through", 1, packed / "01.key.safetensors"),
            (costs, "table_costs", 3, packed / "01.value.safetensors"),
            (dictionaries, "weigh", 0, packed / "costs.0.safetensors"),
        ]
        for module, name, steps, left in points:
            with monkeypatch.context() as patch:
                stop_after(patch, module, name, steps)
                with pytest.raises(KeyboardInterrupt):
                    runner.train_all(runs, tiny)
            assert left.exists()
            assert not lexico.exists()
        assert runs[0].out.exists(), "a set that is done is there"
        assert not runs[1].out.exists()
        made = runner.train_all(runs, tiny)
        for one in made:
            whole = (finished / one.settings.out.name).read_bytes()
            assert one.dictionary.to_bytes() == whole == one.settings.out.read_bytes()

    def test_packed_takes_the_importance_of_the_gradients(
        self, tiny: LoadedModel, finished: Path, tmp_path: Path
    ) -> None:
        text = (finished / "text.txt").read_text()
        windows = cut_windows(text, tiny.tokenizer, 114_688, (1024,))
        geometry = geometry_of(tiny.model.config, "float32")
        seen = Observations(
            finished / "state" / "lexico-residual" / "observations", windows, geometry
        )
        gradients = torch.cat([seen.gradients(window) for window in range(4)])  # one is held out
        expected = gradients.double().view(-1, 2, 2, 16).square().mean((0, 3))
        found = read_importance(finished / NAMES["lexico-residual"])
        torch.testing.assert_close(found, expected)
        folder = tmp_path / "again"
        shutil.copytree(finished, folder)
        mine = ["--importance", str(finished / NAMES["lexico-residual"])]
        args = asked(folder, "--codec", "all", "--joint", "40", *mine)
        args.state = folder / "state"
        packed = runner.train(options.settings_of(args)[1], tiny)
        assert isinstance(packed, AtomSet)
        assert packed.errors is not None
        curve = DictionaryState(folder / "state" / "lexico-packed").result(1, "value").errors
        assert curve is not None
        torch.testing.assert_close(packed.errors[1, 1, 1:], curve[1:] * float(found[1, 1]) ** 0.75)
        assert "--importance set-residual.safetensors" in packed.info.command
        measured = AtomSet.load(finished / NAMES["lexico-packed"])
        assert measured.errors is not None
        assert not torch.equal(measured.errors, packed.errors)
        assert "--importance" not in measured.info.command

    def test_the_table_names_every_file(
        self, tiny: LoadedModel, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner, "load_model", lambda *_: tiny)
        shutil.copytree(finished / "state", _state(tmp_path))
        told = options.run(asked(tmp_path, "--codec", "all", "--joint", "40")).shown
        for codec, name in NAMES.items():
            (row,) = [
                row for row in told.splitlines() if row.startswith(str(tmp_path / name) + " ")
            ]
            made = DictionarySet.load(tmp_path / name)
            assert codec in row
            assert f"{len(made.to_bytes()):,} bytes" in row
            assert " min " in row
            assert row.endswith(made.digest.hex())
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == sorted([*NAMES.values(), "text.txt"]), "the state folder is gone"

    def test_what_the_last_codec_would_refuse_is_refused_first(
        self, tiny: LoadedModel, tmp_path: Path
    ) -> None:
        args = asked(tmp_path, "--codec", "all")
        args.atoms = 5000
        with pytest.raises(InvalidInput, match="5000 atoms need"):
            runner.train_all(options.settings_of(args), tiny)
        assert not _state(tmp_path).exists()

    def test_importance_is_looked_at_first(
        self,
        tiny: LoadedModel,
        finished: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        refused: list[tuple[Path, str]] = [
            (tmp_path / "missing.safetensors", "missing"),
            (finished / NAMES["lexico"], "does not tell it"),
            (tmp_path / NAMES["lexico"], "set"),  # a later run's
        ]
        for path, said in refused:
            args = asked(tmp_path, "--codec", "all", "--importance", str(path))
            with pytest.raises(ConfigurationError, match=said):
                runner.train_all(options.settings_of(args), tiny)
        monkeypatch.setattr(runner, "read_importance", lambda _: torch.ones(3, 2))
        with pytest.raises(InvalidInput, match=r"must be \[2, 2\], not \[3, 2\]"):
            runner.train_all(options.settings_of(args), tiny)
        assert not _state(tmp_path).exists()

    def test_a_state_of_other_settings_is_looked_at_first(
        self, tiny: LoadedModel, tmp_path: Path
    ) -> None:
        runs = options.settings_of(asked(tmp_path, "--codec", "all"))
        for run in runs:
            DictionaryState.claim(run.state, {"codec": "another"})
            with pytest.raises(ConfigurationError, match=f"{run.codec}: belongs to a run"):
                runner.train_all(runs, tiny)
            (run.state / "run.json").unlink()
            assert not any(run.state.iterdir())

    def test_no_run_removes_the_state_of_another(
        self, tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner, "load_model", lambda *_: tiny)
        all_of_them = options.settings_of(asked(tmp_path, "--codec", "all"))
        packed = all_of_them[1].state
        DictionaryState.claim(packed, {"codec": "of a run that was stopped"})
        options.run(asked(tmp_path))
        assert [path.name for path in _state(tmp_path).iterdir()] == [packed.name]
        assert [path.name for path in packed.iterdir()] == ["run.json"]

        shutil.rmtree(packed)
        DictionaryState.claim(_state(tmp_path), {"codec": "of a run that was stopped"})
        both = ("--codec", "lexico", "--codec", "lexico-packed")
        options.run(asked(tmp_path, *both))
        assert [path.name for path in _state(tmp_path).iterdir()] == ["run.json"]

    def test_a_state_that_stays_does_not_cost_the_report(
        self,
        tiny: LoadedModel,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def busy(*_: Any) -> None:
            raise OSError(16, "Device or resource busy")

        monkeypatch.setattr(runner, "load_model", lambda *_: tiny)
        monkeypatch.setattr("lexico_lab.run_state.shutil.rmtree", busy)
        told = options.run(asked(tmp_path)).shown
        assert DictionarySet.load(tmp_path / NAMES["lexico"]).digest.hex() in told
        assert "not_removed=Device or resource busy" in caplog.text
        assert (_state(tmp_path) / "run.json").exists(), "what is left is still this run's"

    def test_a_set_that_does_not_tell_its_importance(self, finished: Path) -> None:
        with pytest.raises(ConfigurationError, match="lexico train --codec lexico-residual"):
            read_importance(finished / NAMES["lexico"])
        with pytest.raises(ConfigurationError, match="absent"):
            read_importance(finished / "absent")


def _state(folder: Path) -> Path:
    return folder / "set.safetensors.state"


def stop_after(patch: pytest.MonkeyPatch, module: Any, name: str, steps: int) -> None:
    """Ctrl-C after so many steps of a generator, or in place of a function."""
    real = getattr(module, name)

    def cut_short(*args: Any) -> Any:
        for number, step in enumerate(real(*args)):
            yield step
            if number + 1 == steps:
                raise KeyboardInterrupt

    def at_once(*_: Any) -> Any:
        raise KeyboardInterrupt

    patch.setattr(module, name, cut_short if steps else at_once)


def residual_of(folder: Path, **changes: Any) -> TrainSettings:
    """A small run."""
    settings = options.settings_of(asked(folder, "--codec", "lexico-residual"))[0]
    return replace(settings, fit=FitSettings(vectors=600, joint=40, **changes))


def test_a_transform_without_atoms(tiny: LoadedModel, tmp_path: Path) -> None:
    made = train(residual_of(tmp_path, sparsity=0), tiny)
    transform = transform_of(made)
    assert (transform.sparsity, made.info.sparsity) == (0, 0)
    assert "--sparsity 0" in made.info.command
    assert DictionarySet.load(made.to_bytes()).digest == made.digest


def test_a_transform_in_blocks(tiny: LoadedModel, tmp_path: Path) -> None:
    made = train(residual_of(tmp_path, blocks=2), tiny)
    assert transform_of(made).bases.shape == (4, 2, 8, 8)
    assert made.info.training["blocks"] == 2
    assert "--blocks 2" in made.info.command


def test_only_as_much_text_is_read_as_is_used(tiny: LoadedModel, tmp_path: Path) -> None:
    settings = replace(residual_of(tmp_path), tokens=4096)
    settings.text.write_text("é" * 10_000_000)
    assert len(settings.read_text()) == 32 * 4096
    settings.text.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="cannot read"):
        settings.read_text()


def test_nothing_is_made_on_another_device_than_asked_for(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors whose device nobody named would be on `meta` here, and stay on the CPU with a GPU."""
    monkeypatch.setenv("LEXICO_KERNEL", "naive")  # the compiled one is for the CPU alone
    vectors = torch.randn(900, 24, generator=torch.Generator().manual_seed(0))
    how = learn.LearnSettings(40, 3, 2000, 500)
    geometry = geometry_of(tiny.model.config, "float32")
    window = tuple(range(1, 61)) * 18

    def everything() -> list[torch.Tensor]:
        made = learn.learn(vectors, vectors[:90], how, vectors[:, 0].abs(), True, "cpu")
        sampled = Sampler(tiny.model, 2, geometry.rope)(window[:100])
        observed = Observer(tiny.model, geometry, 0)((0, window[:1024]))
        assert made.errors is not None
        arrays = [*sampled.states, *sampled.energies, observed.states, observed.gradients]
        return [made.atoms, made.errors, *map(torch.from_numpy, arrays)]

    plain = everything()
    with torch.device("meta"):
        other = everything()
    assert all(torch.equal(one, two) for one, two in zip(plain, other, strict=True))
