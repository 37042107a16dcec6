"""Published methods in `lexico eval`: who takes part where, and who cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lexico_codec.hf_geometry import geometry_of
from lexico_lab.evaluation import peers, run, state, units
from lexico_lab.evaluation.options import table_of
from lexico_lab.evaluation.peers import Peer, load_peers
from lexico_lab.evaluation.run import evaluate
from lexico_lab.evaluation.settings import EvalSettings
from lexico_lab.models import LoadedModel
from lexico_lab.published import kivi, per_token, scores, zipcache
from lexico_lab.published.coder import Coder, Prefix, Stored
from lexico_lab.published.per_token import PerToken
from lexico_proto.errors import ConfigurationError
from lexico_services import cli
from tests.support.coded_models import KV_HEADS, LAYERS, llama
from tests.support.tiny_evaluation import PageText, letters, tiny_settings

HEAD_DIM, SINKS = 32, 4


def never(*_: Any) -> Any:
    raise AssertionError("was asked for")


class Late(PerToken):
    """Fails at what is not the beginning of a text."""

    name = "late"

    def code(self, prefix: Prefix) -> Stored:
        if prefix.positions[0] != SINKS:
            raise ValueError("not the beginning")
        return super().code(prefix)


class Infinite(Coder):
    """Gives nothing finite back."""

    name = "infinite"

    def code(self, prefix: Prefix) -> Stored:
        return Stored(prefix.keys / 0, prefix.values / 0, 1)


class LateInfinite(Infinite):
    """Gives the beginning of a text back, and nothing finite of the rest."""

    name = "late infinite"

    def code(self, prefix: Prefix) -> Stored:
        if prefix.positions[0] == SINKS:
            return Stored(prefix.keys, prefix.values, 1)
        return super().code(prefix)


@pytest.fixture(scope="module")
def model() -> Any:
    return llama(attn_implementation="sdpa", head_dim=HEAD_DIM)


@pytest.fixture
def settings(tmp_path: Path) -> EvalSettings:
    return tiny_settings(tmp_path)


class TestChoice:
    def test_by_a_part_of_a_name_in_either_case(self) -> None:
        assert {one.method for one in load_peers(["kvTC"])} == {"kvtc"}
        assert [one.name for one in load_peers(["TOKEN 2 BIT,"])] == [
            "per token 2 bit, groups of 32"
        ]
        names = [one.name for one in load_peers(["KIVI 2", "zipcache"])]
        assert names[:2] == ["KIVI 2 bit", "KIVI 2 bit, groups of 64"]
        assert len(names) > 2
        assert all(name.startswith("ZipCache") for name in names[2:])
        assert len(load_peers()) > 50

    @pytest.mark.parametrize("change", [{"peers": False}, {"peer": ("KIVI", "")}], ids=str)
    def test_settings(self, settings: EvalSettings, change: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match="peer"):
            replace(settings, **{"peer": ("KIVI",), **change})

    def test_unknown_name_before_the_model_is_read(
        self, settings: EvalSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run, "load_model", never)
        with pytest.raises(ConfigurationError, match=r"peer squeeze: .* per_token, kivi, "):
            evaluate(replace(settings, peer=("KIVI", "squeeze")))

    def test_model_without_rope(
        self, model: Any, settings: EvalSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        geometry = replace(geometry_of(model.config, "float32"), rope=None)
        monkeypatch.setattr(run, "geometry_of", lambda *_: geometry)
        loaded = LoadedModel("tiny", model, letters)
        with pytest.raises(ConfigurationError, match="peer KIVI: needs a model with RoPE"):
            evaluate(replace(settings, peer=("KIVI",)), loaded)
        quick = replace(settings, turns=0, pairs=0)
        assert "need a model with RoPE" in evaluate(quick, loaded)["peers"]

    @pytest.mark.parametrize(
        ("options", "said"),
        [(["--peer", "squeeze"], "peer squeeze"), (["--no-peers", "--peer", "KIVI"], "no-peers")],
        ids=str,
    )
    def test_command_says_so(
        self,
        settings: EvalSettings,
        options: list[str],
        said: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        command = ["eval", "--model", "tiny", "--text", str(settings.sources[0]), *options]
        assert cli.main([*command, "--out", str(settings.out)]) == 2
        assert said in capsys.readouterr().err


class TestReport:
    @pytest.fixture(autouse=True)
    def no_evictions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those have tests of their own."""
        monkeypatch.setattr(scores, "available", lambda: False)

    @pytest.fixture
    def loaded(self, model: Any) -> LoadedModel:
        return LoadedModel("tiny", model, letters)

    def test_methods_asked_for_are_in_every_section(
        self,
        loaded: LoadedModel,
        settings: EvalSettings,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(peers, "CODERS", {"per_token": per_token.coders, "kivi": kivi.coders})
        document = evaluate(replace(settings, peer=("KIVI",)), loaded)
        (source,) = document["sources"]
        ran = ["raw", "KIVI 2 bit", "KIVI 3 bit", "KIVI 4 bit"]
        assert [row["name"] for row in source["fidelity"]] == ran
        assert [row["name"] for row in source["turns"]] == [name for name in ran for _ in "12"]
        assert {row["name"] for row in source["retrieval"]} == {"exact cache", *ran}
        by_name = {row["name"]: row for row in source["turns"] if row["turn"] == 2}
        assert by_name["KIVI 2 bit"]["kl"]["mean"] > by_name["KIVI 4 bit"]["kl"]["mean"] > 0
        for name in ran:
            (unit,) = source["per_text"][name]
            stored = 240 + 32  # tokens, of 2 parts, 2 bytes a value
            whole = stored * LAYERS * 2 * KV_HEADS * HEAD_DIM * 2
            assert by_name[name]["fraction"]["mean"] == unit["turns"][1]["bytes"] / whole
        assert by_name["raw"]["fraction"]["mean"] > 2, "float32 frames over 16 bits"
        assert 2 / 16 < by_name["KIVI 2 bit"]["fraction"]["mean"] < 4.5 / 16
        assert {row["name"] for row in document["times"]} == {"raw"}
        refused = {row["name"]: row for row in document["not_run"]}
        assert "multiple of the group" in refused["KIVI 2 bit, groups of 64"]["reason"]
        assert refused["KIVI 2 bit, groups of 64"]["sources"] == ["foxes.txt"]
        assert "(KIVI) take part in every section but times" in document["peers"]
        assert "--peer KIVI " in document["command"]
        said = PageText((settings.out / "report.html").read_text()).said
        for heading in ("Keys and values apart", "Error of each layer", "KL at every reload"):
            assert heading in said
        assert "KIVI 2 bit, reload 1" in "\n".join(said)
        assert "KIVI 2 bit, bytes %" in said
        assert "KIVI 2 bit: keys" in said
        assert "KIVI 2 bit, groups of 64: not run: " in table_of(document)

        state = tmp_path / "other.state"
        alone = replace(settings, state=state, out=tmp_path / "other", turns=0, pairs=0)
        (plain,) = evaluate(alone, loaded)["sources"]
        rows = {row["name"]: row for row in plain["fidelity"]}
        assert rows["KIVI 3 bit"] == source["fidelity"][2], "figures depend on who else runs"
        assert len(rows) == 1 + 7 + 3
        assert plain["turns"] == []

    def test_not_asked_for_they_are_in_fidelity_alone(
        self, loaded: LoadedModel, settings: EvalSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(peers, "CODERS", {"kivi": kivi.coders})
        document = evaluate(settings, loaded)
        (source,) = document["sources"]
        assert "KIVI 2 bit" in {row["name"] for row in source["fidelity"]}
        assert {row["name"] for row in source["turns"]} == {"raw"}
        assert {row["name"] for row in source["retrieval"]} == {"exact cache", "raw"}
        assert "KIVI 2 bit: keys" not in PageText((settings.out / "report.html").read_text()).said

    def test_a_stopped_run_goes_on_to_the_same_figures(
        self,
        loaded: LoadedModel,
        settings: EvalSettings,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """With a method that learns."""
        given = replace(settings, peer=("CacheGen bins x1", "60 % salient"))
        whole = evaluate(given, loaded)
        assert len(whole["sources"][0]["fidelity"]) >= 3
        second = replace(given, out=tmp_path / "again", state=tmp_path / "again.state")
        put, done = state.Units.put, list[str]()

        def stopping(self: state.Units, source: int, text: int, way: str, unit: Any) -> None:
            if len(done) == 2:
                raise KeyboardInterrupt
            put(self, source, text, way, unit)
            done.append(way)

        monkeypatch.setattr(state.Units, "put", stopping)
        with pytest.raises(KeyboardInterrupt):
            evaluate(second, loaded)
        monkeypatch.setattr(state.Units, "put", put)
        made = evaluate(second, loaded)
        moment = ("times", "environment")
        assert {k: v for k, v in made.items() if k not in moment} == {
            k: v for k, v in whole.items() if k not in moment
        }
        with pytest.raises(ConfigurationError, match="another learned_from, peer, peers"):
            evaluate(replace(second, peer=("60 % salient",)), loaded)

    def test_a_method_that_fails_in_any_part_is_named_and_others_stay(
        self, loaded: LoadedModel, settings: EvalSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        late = Late(4)
        late.name = "late"
        coders: list[Coder] = [late, Infinite(), LateInfinite(), PerToken(4)]
        found = [Peer(coder.name, "odd", coder) for coder in coders]
        monkeypatch.setattr(run, "load_peers", lambda names: found)
        document = evaluate(replace(settings, peer=("odd",)), loaded)
        refused = {row["name"]: row["reason"] for row in document["not_run"]}
        assert set(refused) == {"late", "infinite", "late infinite"}
        assert refused["late"] == "turns and retrieval: not the beginning"
        assert refused["infinite"].startswith("infinite: predictions on its cache are NaN")
        assert refused["late infinite"].startswith("turns and retrieval: late infinite: predict")
        (source,) = document["sources"]
        whole = ["raw", "per token 4 bit"]
        assert {row["name"] for row in source["turns"]} == {*whole}
        assert {row["name"] for row in source["retrieval"]} == {"exact cache", *whole}
        kept = {row["name"]: row for row in source["fidelity"]}
        assert set(kept) == {*whole, "late", "late infinite"}
        assert kept["late"] == kept["per token 4 bit"] | {"name": "late"}
        (unit,) = source["per_text"]["late"]
        assert unit["missing"] == dict.fromkeys(("turns", "retrieval"), "not the beginning")
        assert "late: not run: turns and retrieval: not the beginning" in table_of(document)
        said = PageText((settings.out / "report.html").read_text()).said
        assert "turns and retrieval: not the beginning" in said

    @pytest.mark.parametrize(
        ("change", "missing"), [({"turns": 0}, "retrieval"), ({"pairs": 0}, "turns")], ids=str
    )
    def test_a_section_that_nobody_asked_for_is_not_missing(
        self,
        loaded: LoadedModel,
        settings: EvalSettings,
        monkeypatch: pytest.MonkeyPatch,
        change: dict[str, Any],
        missing: str,
    ) -> None:
        late = Late(4)
        late.name = "late"
        monkeypatch.setattr(run, "load_peers", lambda names: [Peer("late", "odd", late)])
        document = evaluate(replace(settings, peer=("odd",), **change), loaded)
        (refused,) = document["not_run"]
        assert refused["reason"] == f"{missing}: not the beginning"

    def test_a_failure_of_the_model_is_none_of_a_method(
        self, loaded: LoadedModel, settings: EvalSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: Any) -> Any:
            raise RuntimeError("no eager attention")

        monkeypatch.setattr(peers, "CODERS", {"zipcache": zipcache.coders})
        monkeypatch.setattr(units, "importance_of", failing)
        with pytest.raises(RuntimeError, match="no eager attention"):
            evaluate(settings, loaded)

    def test_a_text_that_nothing_learns_from_is_read_and_the_report_says_so(
        self,
        loaded: LoadedModel,
        settings: EvalSettings,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(peers, "CODERS", {"per_token": per_token.coders})
        more = tmp_path / "more.txt"
        given = replace(settings, turns=0, pairs=0, peer_text=more)
        with monkeypatch.context() as patched:
            patched.setattr(run, "load_model", never)
            changes: tuple[dict[str, Any], ...] = ({}, {"peers": False})
            for change in changes:
                with pytest.raises(ConfigurationError, match=r"more\.txt: cannot read"):
                    evaluate(replace(given, **change))
        more.write_text("Foxes.")
        assert evaluate(given, loaded)["peers"].endswith(" Nothing learned from more.txt.")
        other = replace(given, peers=False, state=tmp_path / "other.state")
        assert evaluate(other, loaded)["peers"].endswith(" Nothing learned from more.txt.")
