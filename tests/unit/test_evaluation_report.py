"""`lexico eval`: the report is whole, a stopped run goes on, and bad input is refused by name."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from lexico_codec.sets.dictionary import AtomSet
from lexico_lab.evaluation import peers, run, state
from lexico_lab.evaluation.run import evaluate
from lexico_lab.evaluation.settings import EvalSettings
from lexico_lab.evaluation.units import Judge
from lexico_lab.models import LoadedModel
from lexico_lab.published import kivi, per_token
from lexico_proto.errors import (
    ConfigurationError,
    DictionaryMismatch,
    InvalidInput,
    UnknownCodec,
)
from lexico_services import cli
from tests.support.dictionaries import random_set, set_info, unit_rows
from tests.support.packed_sets import packed_set
from tests.support.tiny_evaluation import letters as tokenizer

LAYERS, HEAD_DIM = 2, 16
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Tree(HTMLParser):
    """Finds tags that are not closed, or closed in another order; collects text and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        found = dict(attrs)
        self.ids += [found["id"]] if found.get("id") else []  # type: ignore[list-item]
        self.links += [v for k, v in attrs if k in ("href", "src") and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=1024,
        initializer_range=0.15,
        pad_token_id=0,
    )
    return LoadedModel("tiny", LlamaForCausalLM(config).eval(), tokenizer)


def settings_in(folder: Path) -> EvalSettings:
    text = folder / "fox & <hound>.txt"
    text.write_text("".join(f"The fox saw {i} hounds and the hounds saw it. " for i in range(60)))
    made = folder / "made.safetensors"
    random_set(LAYERS, HEAD_DIM, kv_heads=2).save(made)
    return EvalSettings(
        model="tiny",
        sources=(text,),
        out=folder / "report",
        state=folder / "state",
        sets=(str(made),),
        codecs=('lexico:{"sparsity":3}', "lossless"),
        texts=2,
        prefix=320,
        recent_tokens=8,
        continuation=24,
        page_tokens=16,
        turns=2,
        turn_tokens=24,
        pairs=3,
        peers=False,
        dtype="float32",
    )


@pytest.fixture
def settings(tmp_path: Path) -> EvalSettings:
    return settings_in(tmp_path)


@dataclass(frozen=True)
class Whole:
    """A run that is done."""

    settings: EvalSettings
    document: dict[str, Any]


@pytest.fixture(scope="module")
def whole(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    settings = settings_in(tmp_path_factory.mktemp("whole"))
    return Whole(settings, evaluate(settings, tiny))


@pytest.fixture
def done(whole: Whole, tmp_path: Path) -> EvalSettings:
    """Of that run; its state is a copy, for tests to change."""
    shutil.copytree(whole.settings.state, tmp_path / "state")
    return replace(whole.settings, out=tmp_path / "report", state=tmp_path / "state")


def figures(document: dict[str, Any]) -> dict[str, Any]:
    """All but what depends on the machine and the moment."""
    return {k: v for k, v in document.items() if k not in ("times", "environment")}


def parsed(page: str) -> Tree:
    tree = Tree()
    tree.feed(page)
    tree.close()
    assert tree.open == []
    return tree


class TestReport:
    def test_page_is_whole_and_stands_alone(self, whole: Whole) -> None:
        page = (whole.settings.out / "report.html").read_text()
        tree = parsed(page)
        assert page.startswith("<!DOCTYPE html>")
        assert tree.seen.count("svg") >= 8
        assert "script" not in tree.seen
        assert all(link.startswith("#") for link in tree.links), "needs the network"
        assert {link[1:] for link in tree.links} <= set(tree.ids)
        assert len(tree.ids) == len(set(tree.ids))
        assert not re.search("https?://", page.replace(' xmlns="http://www.w3.org/2000/svg"', ""))
        assert "fox & <hound>.txt" in tree.text, "names are not escaped"
        assert "<title>" not in tree.text, "escaped twice"
        for wanted in ("lexico s=3", "lossless", "raw", "How to read it", "transformers"):
            assert wanted in tree.text

    def test_data_has_every_figure(self, whole: Whole) -> None:
        document = json.loads((whole.settings.out / "report.json").read_text())
        (source,) = document["sources"]
        rows = {row["name"]: row for row in source["fidelity"]}
        assert list(rows) == ["raw", "lexico s=3", "lossless"]
        coded = rows["lexico s=3"]
        assert 0 < coded["kl"]["low"] <= coded["kl"]["mean"] <= coded["kl"]["high"]
        assert coded["kl_keys"]["mean"] > 0
        assert coded["kl_values"]["mean"] > 0
        assert len(coded["layers"]["keys"]) == len(coded["layers"]["values"]) == LAYERS
        assert all(0 < error < 1 for part in coded["layers"].values() for error in part)
        assert coded["fraction"]["mean"] < rows["lossless"]["fraction"]["mean"]
        assert 2 < rows["raw"]["fraction"]["mean"] < 2.1, "float32 frames over 16 bits"
        assert [row["turn"] for row in source["turns"] if row["name"] == "raw"] == [1, 2]
        assert len(source["retrieval"]) == 4 * 4
        assert {row["name"] for row in document["times"]} == set(rows)
        assert all(row["encode"]["mean"] > 0 < row["decode"]["mean"] for row in document["times"])
        assert document["settings"]["coded"] == 304
        assert len(source["per_text"]["raw"]) == 2

    def test_what_gives_the_bits_back_changes_nothing(self, whole: Whole) -> None:
        (source,) = whole.document["sources"]
        for row in source["fidelity"]:
            if row["name"] in ("raw", "lossless"):
                assert row["kl"]["mean"] == row["kl_keys"]["mean"] == row["nll_more"]["mean"] == 0
                assert row["layers"] == {"keys": [0] * LAYERS, "values": [0] * LAYERS}

    def test_default_is_every_codec_that_the_sets_serve(
        self, tiny: LoadedModel, settings: EvalSettings, tmp_path: Path
    ) -> None:
        packed = tmp_path / "packed.safetensors"
        packed_set(LAYERS, HEAD_DIM, heads=2).save(packed)
        short = replace(
            settings, sets=(*settings.sets, str(packed)), codecs=(), texts=1, turns=0, pairs=0
        )
        document = evaluate(short, tiny)
        found = {way["codec"] for way in document["ways"]}
        assert {"raw", "lossless", "lexico", "lexico-packed"} <= found
        assert {way["set"] for way in document["ways"]} == {"", "made", "packed"}
        (source,) = document["sources"]
        assert source["turns"] == source["retrieval"] == []
        assert source["fidelity"][1]["kl"]["low"] is None, "one text has no interval"
        parsed((settings.out / "report.html").read_text())

    def test_peers_run_where_they_are_and_are_named_where_they_cannot(
        self, tiny: LoadedModel, settings: EvalSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(peers, "CODERS", {"per_token": per_token.coders, "kivi": kivi.coders})
        document = evaluate(replace(settings, peers=True, codecs=("raw",)), tiny)
        ran = {row["name"] for row in document["sources"][0]["fidelity"]}
        failed = {row["name"]: row["reason"] for row in document["not_run"]}
        ours = {way["name"] for way in document["ways"] if way["ours"]}
        assert ran - ours
        assert "multiple of the group" in failed["KIVI 2 bit"]
        parsed((settings.out / "report.html").read_text())


class TestResume:
    def test_a_stopped_run_goes_on_to_the_same_figures(
        self,
        tiny: LoadedModel,
        whole: Whole,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        second = replace(whole.settings, out=tmp_path / "again", state=tmp_path / "again.state")
        done: list[str] = []
        put = state.Units.put

        def stopping(self: state.Units, source: int, text: int, way: str, unit: Any) -> None:
            if len(done) == 4:
                raise KeyboardInterrupt
            put(self, source, text, way, unit)
            done.append(way)

        monkeypatch.setattr(state.Units, "put", stopping)
        with pytest.raises(KeyboardInterrupt):
            evaluate(second, tiny)
        assert not second.out.exists()
        done.clear()
        assert figures(evaluate(second, tiny)) == figures(whole.document)
        assert len(done) == 2, "finished units were measured again"

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"seed": 5}, "seed"),
            ({"codecs": ("raw",)}, "codec, ways"),
            ({"recent_tokens": 4}, "recent_tokens"),
        ],
    )
    def test_a_state_of_other_settings_is_refused(
        self, tiny: LoadedModel, done: EvalSettings, change: dict[str, Any], named: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=f"another {named}"):
            evaluate(replace(done, **change), tiny)

    def test_a_damaged_unit_is_named(self, tiny: LoadedModel, done: EvalSettings) -> None:
        unit = unit_of(done)
        unit.write_text("{")
        with pytest.raises(ConfigurationError, match=unit.name):
            evaluate(done, tiny)


def unit_of(settings: EvalSettings) -> Path:
    return next(path for path in settings.state.iterdir() if path.name != "run.json")


def never(*_: Any) -> Any:
    raise AssertionError("the model ran")


class TestRefusals:
    @pytest.mark.parametrize("make", [Path.touch, None], ids=["a file", "no folder to lie in"])
    def test_unwritable_report_before_anything_runs(
        self,
        settings: EvalSettings,
        make: Callable[[Path], None] | None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(run, "load_model", never)
        out = settings.out if make else settings.out / "deeper" / "report"
        if make:
            make(out)
        with pytest.raises(ConfigurationError, match="cannot be written"):
            evaluate(replace(settings, out=out))
        assert not settings.state.exists()

    def test_a_report_that_cannot_be_written_at_the_end_loses_nothing(
        self, tiny: LoadedModel, done: EvalSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where the disk is full by then: what was measured stays, what this run did too."""
        last = unit_of(done)
        last.unlink()

        def full(_: Any, __: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            drawn = lambda _: patch.setattr("os.replace", full) or "page"  # noqa: E731
            patch.setattr(run, "_page", lambda: drawn)
            with pytest.raises(ConfigurationError, match=r"report.html: cannot write \(No space"):
                evaluate(done, tiny)
        assert not (done.out / "report.html").exists()
        assert last.exists()
        monkeypatch.setattr(Judge, "of_way", never)
        assert evaluate(done, tiny)["sources"]
        assert (done.out / "report.html").is_file()

    def test_unreadable_text_before_the_model(
        self, settings: EvalSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run, "load_model", never)
        with pytest.raises(ConfigurationError, match="absent"):
            evaluate(replace(settings, sources=(tmp_path / "absent.txt",)))
        lines = tmp_path / "lines.jsonl"
        lines.write_text('{"question": "why"}\n')
        with pytest.raises(ConfigurationError, match="answer"):
            evaluate(replace(settings, sources=(lines,)))

    @pytest.mark.parametrize(
        ("letters", "named"), [(9, "less than a page of 16"), (500, "too few for 2 texts")]
    )
    def test_short_text(
        self, tiny: LoadedModel, settings: EvalSettings, letters: int, named: str
    ) -> None:
        settings.sources[0].write_text("a" * letters)
        with pytest.raises(InvalidInput, match=named):
            evaluate(settings, tiny)

    @pytest.mark.parametrize("shape", [(LAYERS + 1, HEAD_DIM), (LAYERS, HEAD_DIM // 2)])
    def test_set_of_another_model(
        self, tiny: LoadedModel, settings: EvalSettings, shape: tuple[int, int], tmp_path: Path
    ) -> None:
        other = tmp_path / "other.safetensors"
        random_set(*shape).save(other)
        with pytest.raises(DictionaryMismatch, match="random"):
            evaluate(replace(settings, sets=(str(other),)), tiny)

    def test_set_of_another_rotation(
        self, tiny: LoadedModel, settings: EvalSettings, tmp_path: Path
    ) -> None:
        other = tmp_path / "other.safetensors"
        info = replace(set_info(2), rope={"inv_freq": [1.0, 0.5], "pairing": "half", "scale": 1.0})
        atoms = [(unit_rows(20, HEAD_DIM, 0), unit_rows(20, HEAD_DIM, 1))] * LAYERS
        AtomSet.build(atoms, info).save(other)
        with pytest.raises(DictionaryMismatch, match="rotary embedding"):
            evaluate(replace(settings, sets=(str(other),)), tiny)

    def test_set_of_another_codec(self, tiny: LoadedModel, settings: EvalSettings) -> None:
        with pytest.raises(DictionaryMismatch, match="lexico-packed"):
            evaluate(replace(settings, codecs=("lexico-packed",)), tiny)

    def test_no_set_at_all(self, tiny: LoadedModel, settings: EvalSettings) -> None:
        with pytest.raises(ConfigurationError, match="give --set"):
            evaluate(replace(settings, sets=(), codecs=("lexico",)), tiny)

    @pytest.mark.parametrize(
        ("codec", "error"),
        [
            ("zip", UnknownCodec),
            ("lexico:{", ConfigurationError),
            ('lexico:{"sparsity":17}', ConfigurationError),
            ('paper:{"sparsity":3}', ConfigurationError),
        ],
    )
    def test_codec_that_cannot_run(
        self, tiny: LoadedModel, settings: EvalSettings, codec: str, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            evaluate(replace(settings, codecs=(codec,)), tiny)

    @pytest.mark.parametrize(
        "change",
        [{"prefix": 20}, {"texts": 0}, {"pairs": 1}, {"dtype": "int8"}, {"turns": -1}],
        ids=str,
    )
    def test_settings(self, settings: EvalSettings, change: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match=next(iter(change))):
            replace(settings, **change)

    def test_text_beyond_the_models_positions(
        self, tiny: LoadedModel, settings: EvalSettings
    ) -> None:
        with pytest.raises(ConfigurationError, match="model takes 1024"):
            evaluate(replace(settings, turns=40), tiny)

    def test_command_says_so(
        self, settings: EvalSettings, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings.out.touch()
        command = ["eval", "--model", "tiny", "--text", str(settings.sources[0])]
        assert cli.main([*command, "--out", str(settings.out)]) == 2
        assert "cannot be written" in capsys.readouterr().err
