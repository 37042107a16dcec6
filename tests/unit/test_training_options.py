"""The options of `lexico train`, and which sets they ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lexico_lab.training import options
from lexico_lab.training.fit_settings import FitSettings
from lexico_proto.errors import ConfigurationError
from tests.support.training_command import NAMES, asked, parsed


class TestOptions:
    def test_one_codec_is_as_ever(self, tmp_path: Path) -> None:
        line = ["--model", "m", "--text", "t", "--out", str(tmp_path / "a.b")]
        (made,) = options.settings_of(parsed(*line, "--device", "cpu"))
        assert (made.codec, made.tokens, made.learn.atoms) == ("lexico", 240_000, 1024)
        assert (made.out, made.state) == (tmp_path / "a.b", tmp_path / "a.b.state")
        residual = ["--codec", "lexico-residual", "--sparsity", "0", "--blocks", "4"]
        (made,) = options.settings_of(parsed(*line, *residual))
        assert (made.tokens, made.fit) == (114_688, FitSettings(sparsity=0, blocks=4))
        assert made.out == tmp_path / "a.b"
        assert made.command.endswith(" --joint 2880 --run-layers 0 --blocks 4")
        one = ["--codec", "lexico-packed", "--importance", "x/y.safetensors"]
        (made,) = options.settings_of(parsed(*line, *one))
        assert made.importance == Path("x/y.safetensors")
        assert made.command.endswith(" --importance y.safetensors")

    @pytest.mark.parametrize("words", [["all"], ["lexico", "lexico-packed", "lexico-residual"]])
    def test_several_are_made_in_an_order_of_our_own(
        self, words: list[str], tmp_path: Path
    ) -> None:
        made = options.settings_of(
            asked(tmp_path, *(part for word in words for part in ("--codec", word)))
        )
        assert {one.codec: one.out.name for one in made} == NAMES
        assert [one.codec for one in made] == list(NAMES)
        state = tmp_path / "set.safetensors.state"
        assert [one.state for one in made] == [state / codec for codec in NAMES]
        assert {one.tokens for one in made} == {114_688}
        assert made[0].fit == FitSettings(), "--atoms, --sparsity and --vectors are of dictionaries"
        assert {(one.learn.atoms, one.learn.sparsity) for one in made[1:]} == {(16, 2)}
        assert [one.importance for one in made] == [None] * 3
        mine = ("--importance", str(made[0].out))
        made = options.settings_of(asked(tmp_path, "--codec", "all", *mine))
        assert [one.importance for one in made] == [None, made[0].out, None]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--importance", "x"], "importance"),
            (["--codec", "lexico-residual", "--importance", "x"], "importance"),
            (["--device", "tpu"], "device"),
            (["--workers", "0"], "workers"),
            (["--codec", "lexico-residual", "--blocks", "0"], "blocks"),
        ],
    )
    def test_what_cannot_be_is_named(self, words: list[str], said: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=said):
            options.settings_of(asked(tmp_path, *words))

    def test_a_gpu_of_workers_elsewhere_need_not_be_here(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for name in ("cuda", "cuda:3"):
            args = asked(tmp_path, "--device", name)
            with pytest.raises(ConfigurationError, match="0 CUDA devices"):
                options.settings_of(args)
            assert options.settings_of(args, elsewhere=True)[0].device == "cpu"
        with pytest.raises(ConfigurationError, match="must be cpu, cuda or cuda:N"):
            options.settings_of(asked(tmp_path, "--device", "tpu"), elsewhere=True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        for name, device in (("cuda:3", "cuda"), ("cpu", "cpu")):
            args = asked(tmp_path, "--device", name)
            assert options.settings_of(args, elsewhere=True)[0].device == device

    def test_a_gpu_has_one_worker(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        line = ["--model", "m", "--text", "t", "--out", str(tmp_path / "a")]
        monkeypatch.setattr(options, "device_for", lambda name: name or "cuda")
        (made,) = options.settings_of(parsed(*line))
        assert (made.device, made.workers) == ("cuda", 1)
