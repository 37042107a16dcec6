"""Methods that evict, in `lexico eval`: without kvpress by scores drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from lexico_lab.evaluation import evictions, peers, run, state
from lexico_lab.evaluation.options import table_of
from lexico_lab.evaluation.peers import Evicting, Published, load_peers
from lexico_lab.evaluation.run import evaluate
from lexico_lab.evaluation.settings import EvalSettings
from lexico_lab.models import LoadedModel
from lexico_lab.published import eviction, kivi, kvtc, per_token, scores, short_caches
from lexico_lab.published.eviction import Eviction
from lexico_lab.studies import quality
from lexico_proto.errors import ConfigurationError
from tests.support.coded_models import KV_HEADS, LAYERS, llama
from tests.support.dictionaries import random_set
from tests.support.packed_sets import packed_set
from tests.support.tiny_evaluation import letters, tiny_settings

PAGE, HEAD_DIM, SINKS, PREFIX, CODED = 16, 32, 4, 208, 192
HEADS = LAYERS * KV_HEADS
EVERY = [
    *(f"SnapKV, {share} % kept" for share in (35, 90)),
    "SnapKV, 75 % kept + lexico s=8",
    *(f"PyramidKV, {share} % kept" for share in (35, 90)),
    "PyramidKV, 75 % kept + lexico s=8",
    *(f"Compactor, {share} % kept" for share in (35, 90)),
    "Compactor, 75 % kept + lexico s=8",
    *(f"KVzip, {share} % kept" for share in (10, 20, 35, 50)),
    *(f"KVzip, {share} % kept + lexico s=8" for share in (10, 35)),
]

needs_kvpress = pytest.mark.skipif(not scores.available(), reason="kvpress is not installed")


def never(*_: Any) -> Any:
    raise AssertionError("was asked for")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    model = llama(attn_implementation="sdpa", head_dim=HEAD_DIM)
    return LoadedModel("tiny", model, letters)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvalSettings:
    """Evictions, with a codec's set at hand, and no published method that codes."""
    monkeypatch.setattr(peers, "CODERS", {})
    made = tmp_path / "made.safetensors"
    random_set(LAYERS, HEAD_DIM, kv_heads=2).save(made)
    return tiny_settings(tmp_path, sets=(str(made),), prefix=PREFIX, turns=0, pairs=0)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of kvpress's scores random ones; which were asked for."""
    asked: list[str] = []

    def drawn(
        _: Any, ids: Any, __: Any, chosen: Any, stored: slice, *___: Any
    ) -> dict[str, Tensor]:
        found = {}
        for one in chosen:
            key = scores.score_key(one)
            asked.append(key)
            generator = torch.Generator().manual_seed(sum(ids) + len(key))
            shape = LAYERS, KV_HEADS, stored.stop - stored.start
            found[key] = torch.rand(shape, generator=generator)
        return found

    monkeypatch.setattr(scores, "scores_of", drawn)
    monkeypatch.setattr(scores, "available", lambda: True)
    monkeypatch.setattr(scores, "refusal", lambda model: "")
    return asked


def bytes_of(one: Eviction) -> int:
    """By hand, of heads that keep as many on average as were asked for."""
    vectors = 2 * (3 * 8 + 2 if one.coded else 2 * HEAD_DIM)
    sinks = SINKS * 2 * 2 * HEAD_DIM + 2  # and the number of a head's tokens
    return HEADS * (sinks + one.count(slice(SINKS, CODED)) * (vectors + 2))


class TestReport:
    def test_they_are_in_quality_against_bytes_alone(
        self, loaded: LoadedModel, settings: EvalSettings, scored: list[str]
    ) -> None:
        given = replace(settings, turns=2, turn_tokens=32, pairs=2, codecs=("lossless",))
        document = evaluate(given, loaded)
        (source,) = document["sources"]
        rows = {row["name"]: row for row in source["fidelity"]}
        assert list(rows) == ["raw", "lossless", *EVERY]
        assert document["not_run"] == []
        whole = CODED * 2 * HEADS * HEAD_DIM * 2
        for one in eviction.evictions():
            if one.method not in eviction.USUAL:
                continue
            row = rows[one.name]
            assert row["kl"]["mean"] > 0
            assert row["kl_keys"] is row["kl_values"] is row["layers"] is None
            about = 0.02 if one.method == "pyramidkv" else 1e-9  # it rounds layer by layer
            assert row["fraction"]["mean"] == pytest.approx(bytes_of(one) / whole, rel=about)
        assert rows["SnapKV, 35 % kept"]["kl"]["mean"] > rows["SnapKV, 90 % kept"]["kl"]["mean"]
        assert "snapkv + lexico" in source["bytes_at_kl"]
        ours = {"raw", "lossless"}
        assert {row["name"] for row in source["turns"]} == ours
        assert {row["name"] for row in source["retrieval"]} == {"exact cache", *ours}
        assert {row["name"] for row in document["times"]} == ours
        assert "(snapkv, snapkv + lexico, pyramidkv, " in document["peers"]
        assert "quality against bytes alone in any case" in document["peers"]
        page = (settings.out / "report.html").read_text()
        assert "KVzip, 50 % kept" in page
        assert "no pages: it takes part in quality against bytes alone" in page
        sets = {way["name"]: way.get("set") for way in document["ways"]}
        assert sets["SnapKV, 35 % kept"] is None
        assert sets["SnapKV, 75 % kept + lexico s=8"] == "made"

    def test_asked_for_by_name(
        self, loaded: LoadedModel, settings: EvalSettings, scored: list[str]
    ) -> None:
        """Methods too that do not run where none is named; each scores a text once."""
        given = replace(settings, turns=2, turn_tokens=32, peer=("kvZIP, 2", "Pyramid", "adakv"))
        document = evaluate(given, loaded)
        (source,) = document["sources"]
        names = [row["name"] for row in source["fidelity"]]
        assert names[:2] == ["raw", "PyramidKV, 35 % kept"]
        assert "Ada-SnapKV, 90 % kept" in names
        assert names[-1] == "KVzip, 20 % kept"
        assert len(names) == 1 + 3 + 3 + 1
        assert {row["name"] for row in source["turns"]} == {"raw"}
        assert scored == ["snapkv", "kvzip"]
        assert "'kvZIP, 2'" in document["command"]

    def test_figures_are_those_of_the_study(
        self,
        loaded: LoadedModel,
        settings: EvalSettings,
        scored: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        given = replace(settings, peer=("KVzip, 10 % kept", "Compactor, 35"))
        (source,) = evaluate(given, loaded)["sources"]
        monkeypatch.setattr(quality, "SPLIT", replace(given, turns=0))
        ids = letters(settings.sources[0].read_text())["input_ids"][: PREFIX + 24]
        alone = [Eviction("compactor", 0.35), Eviction("kvzip", 0.1)]
        expected = quality.measure(loaded.model, ids, alone)
        assert len(source["fidelity"]) == 1 + 3, "coded too"
        for name, point in expected.items():
            (unit,) = source["per_text"][name]
            assert unit["fidelity"]["bytes"] == point["bytes"]
            assert unit["fidelity"] == pytest.approx(point, rel=1e-4)

    def test_a_stopped_run_goes_on_to_the_same_figures(
        self,
        loaded: LoadedModel,
        settings: EvalSettings,
        scored: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        given = replace(settings, peer=("snapkv,", "kvzip"))
        whole = evaluate(given, loaded)
        second = replace(given, out=tmp_path / "again", state=tmp_path / "again.state")
        put, done = state.Units.put, list[str]()

        def stopping(self: state.Units, source: int, text: int, way: str, unit: Any) -> None:
            if len(done) == 3:
                raise KeyboardInterrupt
            put(self, source, text, way, unit)
            done.append(way)

        with monkeypatch.context() as patched:
            patched.setattr(state.Units, "put", stopping)
            with pytest.raises(KeyboardInterrupt):
                evaluate(second, loaded)
        assert done[1:] == ["SnapKV, 35 % kept", "SnapKV, 90 % kept"]
        made = evaluate(second, loaded)
        moment = ("times", "environment")
        assert {k: v for k, v in made.items() if k not in moment} == {
            k: v for k, v in whole.items() if k not in moment
        }
        other = tmp_path / "other.safetensors"
        random_set(LAYERS, HEAD_DIM, seed=7, kv_heads=2).save(other)
        with pytest.raises(ConfigurationError, match="another kept_through"):
            evaluate(replace(second, sets=(str(other),)), loaded)

    @pytest.mark.parametrize(
        ("error", "said"),
        [(AssertionError("window size"), "window size"), (KeyError(), "fails (KeyError)")],
        ids=repr,
    )
    def test_what_kvpress_fails_at_is_named_and_others_stay(
        self,
        loaded: LoadedModel,
        settings: EvalSettings,
        scored: list[str],
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
        said: str,
    ) -> None:
        drawn = scores.scores_of

        def failing(
            model: Any, ids: Any, cache: Any, chosen: Sequence[Eviction], *rest: Any
        ) -> Any:
            if chosen[0].method == "compactor":
                raise error
            return drawn(model, ids, cache, chosen, *rest)

        monkeypatch.setattr(scores, "scores_of", failing)
        document = evaluate(replace(settings, peer=("snapkv,", "compactor")), loaded)
        names = {row["name"] for row in document["sources"][0]["fidelity"]}
        assert {"SnapKV, 35 % kept", "SnapKV, 75 % kept + lexico s=8"} <= names
        reasons = {row["name"]: row["reason"] for row in document["not_run"]}
        assert set(reasons) == {name for name in EVERY if name.startswith("Compactor")}
        assert set(reasons.values()) == {said}
        assert "Compactor, 35 % kept: not run: " in table_of(document)

    def test_what_is_not_finite_is_named(
        self,
        loaded: LoadedModel,
        settings: EvalSettings,
        scored: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def infinite(model: Any, kept: Any, ids: Sequence[int], first: int) -> Tensor:
            return torch.full((len(ids), 97), torch.nan)

        monkeypatch.setattr(short_caches, "continued", infinite)
        document = evaluate(replace(settings, peer=("kvzip, 50",)), loaded)
        (refused,) = document["not_run"]
        assert refused["name"] == "KVzip, 50 % kept"
        assert "NaN or infinite" in refused["reason"]


class TestLeftOut:
    def test_without_kvpress_the_report_says_how_to_get_it(
        self, loaded: LoadedModel, settings: EvalSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(peers, "CODERS", {"per_token": per_token.coders})
        monkeypatch.setattr(scores, "available", lambda: False)
        document = evaluate(settings, loaded)
        (refused,) = document["not_run"]
        alone = ("snapkv", "pyramidkv", "compactor", "kvzip")
        named = ", ".join(f"{one}, {one} + lexico" for one in alone)
        assert refused == {
            "name": named,
            "reason": "kvpress is not installed; in the project's repository: make .venv/evict",
            "sources": ["foxes.txt"],
        }
        assert "evict" not in document["peers"]
        assert not any("kept" in way["name"] for way in document["ways"])
        assert "make .venv/evict" in (settings.out / "report.html").read_text()

    def test_a_name_of_evictions_alone_is_refused_before_the_model_is_read(
        self, settings: EvalSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(peers, "CODERS", {"kvtc": kvtc.coders})
        monkeypatch.setattr(scores, "available", lambda: False)
        monkeypatch.setattr(run, "load_model", never)
        with pytest.raises(ConfigurationError, match=r"peer snapkv: kvpress .* \.venv/evict"):
            evaluate(replace(settings, peer=("KVTC", "snapkv")))
        with pytest.raises(ConfigurationError, match=r"peer squeeze: .* kvtc, streamingllm, "):
            evaluate(replace(settings, peer=("squeeze",)))

    def test_a_name_of_others_too_leaves_evictions_out(
        self, loaded: LoadedModel, settings: EvalSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(peers, "CODERS", {"kivi": kivi.coders})
        monkeypatch.setattr(scores, "available", lambda: False)
        document = evaluate(replace(settings, peer=("K",)), loaded)
        first = document["not_run"][0]
        assert first["name"].startswith("streamingllm, ")
        assert first["reason"] == scores.ABSENT
        assert "KIVI 3 bit" in {row["name"] for row in document["sources"][0]["fidelity"]}

    def test_other_models(
        self,
        loaded: LoadedModel,
        settings: EvalSettings,
        scored: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(scores, "refusal", lambda model: "kvpress does not know it")
        (refused,) = evaluate(settings, loaded)["not_run"]
        assert refused["reason"] == "kvpress does not know it"
        with pytest.raises(ConfigurationError, match="peer KVzip: kvpress does not know it"):
            evaluate(replace(settings, peer=("KVzip",)), loaded)

    def test_what_repeats_the_prefix_needs_room(
        self, loaded: LoadedModel, settings: EvalSettings, scored: list[str]
    ) -> None:
        """512 positions are enough for the text."""
        document = evaluate(replace(settings, prefix=240), loaded)
        (refused,) = document["not_run"]
        assert refused["name"] == "kvzip, kvzip + lexico"
        assert refused["reason"] == "repeats the prefix: 519 tokens, the model takes 512"
        names = [row["name"] for row in document["sources"][0]["fidelity"]]
        assert names == ["raw", *(name for name in EVERY if not name.startswith("KVzip"))]
        asked = replace(settings, prefix=240, sets=(), peer=("snapkv + lexico", "kvzip, 20"))
        with pytest.raises(ConfigurationError, match="peer kvzip, 20: repeats the prefix"):
            evaluate(replace(asked, peer=("snapkv", "kvzip, 20")), loaded)
        with pytest.raises(ConfigurationError, match=r"peer snapkv \+ lexico: .*set"):
            evaluate(asked, loaded)

    @pytest.mark.parametrize("at_hand", ["none", "of another codec"])
    def test_without_a_set_nothing_is_coded(
        self,
        loaded: LoadedModel,
        settings: EvalSettings,
        scored: list[str],
        at_hand: str,
        tmp_path: Path,
    ) -> None:
        other = tmp_path / "packed.safetensors"
        packed_set(LAYERS, HEAD_DIM, heads=2).save(other)
        given = replace(settings, sets=() if at_hand == "none" else (str(other),))
        document = evaluate(given, loaded)
        (refused,) = document["not_run"]
        methods = ("snapkv", "pyramidkv", "compactor", "kvzip")
        assert refused["name"] == ", ".join(f"{one} + lexico" for one in methods)
        assert "set" in refused["reason"]
        names = [row["name"] for row in document["sources"][0]["fidelity"]]
        assert names == ["raw", *(name for name in EVERY if "+" not in name)]
        with pytest.raises(ConfigurationError, match=r"peer lexico s=8: "):
            evaluate(replace(given, peer=("lexico s=8",)), loaded)

    def test_not_asked_for(self, loaded: LoadedModel, settings: EvalSettings) -> None:
        document = evaluate(replace(settings, peers=False), loaded)
        assert document["not_run"] == []
        assert [way["name"] for way in document["ways"]] == ["raw"]


class TestModels:
    def test_kvpress_says_which_it_knows(
        self, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        press = SimpleNamespace(SUPPORTED_MODELS=(LlamaForCausalLM,))
        fake = SimpleNamespace(presses=SimpleNamespace(base_press=press))
        monkeypatch.setattr(scores, "available", lambda: True)
        monkeypatch.setattr(scores, "_kvpress", lambda: fake)
        assert scores.refusal(loaded.model) == ""
        said = "kvpress does not know SimpleNamespace, but LlamaForCausalLM"
        assert scores.refusal(SimpleNamespace()) == said

    def test_an_unsound_kvpress_is_a_reason(
        self, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing() -> Any:
            raise ImportError("no datasets")

        monkeypatch.setattr(scores, "available", lambda: True)
        monkeypatch.setattr(scores, "_kvpress", failing)
        assert scores.refusal(loaded.model) == "kvpress cannot be imported (no datasets)"


def test_settings_that_run_are_the_usual_ones() -> None:
    def methods(found: Sequence[Published]) -> set[str]:
        return {one.eviction.method for one in found if isinstance(one, Evicting)}

    assert methods(load_peers()) == set(eviction.USUAL)


def test_kept_tokens_are_coded_as_they_are_named() -> None:
    assert evictions._CODED == 'lexico:{"sparsity":8}'
    assert eviction.CODER == "lexico s=8"


@needs_kvpress
def test_with_kvpress(loaded: LoadedModel, settings: EvalSettings) -> None:
    document = evaluate(settings, loaded)
    assert [row["name"] for row in document["sources"][0]["fidelity"]] == ["raw", *EVERY]
    assert document["not_run"] == []
