"""Codecs that refuse a dictionary set while an evaluation runs: the report stays, and says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lexico_lab.evaluation import units
from lexico_lab.evaluation.fidelity import through_frames
from lexico_lab.evaluation.options import summary_of, table_of
from lexico_lab.evaluation.prefixes import ExactText
from lexico_lab.evaluation.run import evaluate
from lexico_lab.evaluation.settings import EvalSettings
from lexico_lab.evaluation.turns import converse
from lexico_lab.models import LoadedModel
from lexico_proto.errors import DictionaryMismatch
from tests.support.cli_shapes import SHAPES, misfits
from tests.support.coded_models import LAYERS, llama
from tests.support.residual_sets import residual_set
from tests.support.tiny_evaluation import PageText, letters, tiny_settings

HEAD_DIM = 32


@pytest.fixture(scope="module")
def model() -> Any:
    return llama(attn_implementation="sdpa", head_dim=HEAD_DIM)


@pytest.fixture
def settings(tmp_path: Path) -> EvalSettings:
    return tiny_settings(tmp_path)


class TestRefusedSets:
    def test_a_set_of_other_weights_leaves_the_report(
        self, model: Any, settings: EvalSettings, tmp_path: Path
    ) -> None:
        far = tmp_path / "far.safetensors"
        residual_set(LAYERS, 2, HEAD_DIM, mean=5.0, gain=0.0).save(far)
        given = replace(settings, sets=(str(far),), codecs=("lossless", "balanced"), peers=False)
        document = evaluate(given, LoadedModel("tiny", model, letters))
        (refused,) = document["not_run"]
        assert refused["name"] == "lexico-residual quality=balanced"
        assert "nothing like what the dictionary set of random was made from" in refused["reason"]
        (source,) = document["sources"]
        assert [row["name"] for row in source["fidelity"]] == ["raw", "lossless"]
        assert "lexico-residual quality=balanced: not run: " in table_of(document)

    def test_texts_that_are_not_refused_keep_their_figures(
        self,
        model: Any,
        settings: EvalSettings,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        odd = tmp_path / "odd.txt"
        odd.write_text("x" * 4000)
        whole = through_frames

        def refusing(exact: ExactText, way: Any, coded: int) -> Any:
            if way.name == "lossless" and exact.ids[:3] == (ord("x") % 64,) * 3:
                raise DictionaryMismatch("a set of other weights")
            return whole(exact, way, coded)

        monkeypatch.setattr(units, "through_frames", refusing)
        sources = (*settings.sources, odd)
        given = replace(settings, sources=sources, codecs=("lossless",), peers=False, turns=0)
        document = evaluate(given, LoadedModel("tiny", model, letters))
        assert document["not_run"] == [
            {"name": "lossless", "reason": "a set of other weights", "sources": ["odd.txt"]}
        ]
        names = [[row["name"] for row in source["fidelity"]] for source in document["sources"]]
        assert names == [["raw", "lossless"], ["raw"]]
        said = PageText((settings.out / "report.html").read_text()).said
        assert "odd.txt" in said
        assert "files" in said
        assert "lossless: not run on odd.txt: a set of other weights" in table_of(document)
        told = summary_of(document, settings.out, 1.5)
        assert misfits(json.loads(json.dumps(told)), SHAPES["eval"]) == []
        assert told["not_run"] == document["not_run"]
        ways = [[way["name"] for way in source["ways"]] for source in told["sources"]]
        assert (ways, Path(told["report"]).is_file(), Path(told["data"]).is_file()) == (
            names,
            True,
            True,
        )

    def test_a_later_turn_takes_no_figures_that_were_found(
        self, model: Any, settings: EvalSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = converse

        def refusing(model: Any, exact: Any, open_shelf: Any, settings: EvalSettings) -> Any:
            if open_shelf.args[0].name == "lossless":
                raise DictionaryMismatch("a set of other weights")
            return whole(model, exact, open_shelf, settings)

        monkeypatch.setattr(units, "converse", refusing)
        given = replace(settings, codecs=("lossless",), peers=False)
        document = evaluate(given, LoadedModel("tiny", model, letters))
        reason = "turns: a set of other weights"
        assert document["not_run"] == [
            {"name": "lossless", "reason": reason, "sources": ["foxes.txt"]}
        ]
        (source,) = document["sources"]
        ran = ["raw", "lossless"]
        assert [row["name"] for row in source["fidelity"]] == ran
        assert [row["name"] for row in document["times"]] == ran
        assert {row["name"] for row in source["turns"]} == {"raw"}
        assert {row["name"] for row in source["retrieval"]} == {"exact cache", *ran}
