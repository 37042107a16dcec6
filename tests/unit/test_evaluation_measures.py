"""What `lexico eval` measures: intervals, curves, turns, retrieval."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lexico_codec.hf_geometry import geometry_of
from lexico_lab.caches import cache_of, divergence, forward, states_of
from lexico_lab.evaluation import prefixes, retrieval
from lexico_lab.evaluation.curves import curve, fraction_at
from lexico_lab.evaluation.fidelity import layer_errors, through_frames
from lexico_lab.evaluation.intervals import interval
from lexico_lab.evaluation.prefixes import cut, exact_text, read_text
from lexico_lab.evaluation.retrieval import ask, exact_task, make_task
from lexico_lab.evaluation.settings import EvalSettings
from lexico_lab.evaluation.shelf import FrameShelf
from lexico_lab.evaluation.turns import converse, exact_turns, resume
from lexico_lab.evaluation.ways import NamedSet, Way, choose_ways
from lexico_proto.errors import InvalidInput
from tests.support.coded_models import llama, prompt
from tests.support.dictionaries import random_set

PAGE = 16


class Words:
    """A tokenizer of words and marks, `beginning` with a token of its own."""

    def __init__(self, beginning: tuple[int, ...] = ()) -> None:
        self.known: dict[str, int] = {}
        self.beginning = beginning

    def __call__(self, text: str, *, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        parts = text.replace("\n", " \n ").replace(".", " . ").split(" ")
        ids = [self.known.setdefault(part, 2 + len(self.known)) for part in parts if part]
        return {"input_ids": [*(self.beginning if add_special_tokens else ()), *ids]}


@pytest.fixture(scope="module")
def model() -> Any:
    return llama(attn_implementation="sdpa")


def settings_of(**changes: Any) -> EvalSettings:
    given: dict[str, Any] = {
        "model": "tiny",
        "sources": (Path("text.txt"),),
        "out": Path("out"),
        "state": Path("state"),
        "texts": 1,
        "prefix": 160,
        "recent_tokens": 8,
        "continuation": 16,
        "page_tokens": PAGE,
        "turns": 3,
        "turn_tokens": 24,
        "pairs": 3,
        "dtype": "float32",
    }
    return EvalSettings(**given | changes)


def ways_of(model: Any, *codecs: str, **changes: Any) -> dict[str, Way]:
    geometry = geometry_of(model.config, "float32")
    named = [NamedSet("random", random_set(geometry.layers, geometry.head_dim))]
    chosen = choose_ways(settings_of(codecs=codecs, **changes), geometry, bytes(32), named)
    return {way.name: way for way in chosen.ways}


class TestIntervals:
    def test_same_seed_same_interval(self) -> None:
        values = [0.1, 0.5, 0.2, 0.9, 0.4]
        assert interval(values, 3) == interval(values, 3)
        assert interval(values, 3) != interval(values, 4)

    def test_holds_the_mean_and_narrows_with_texts(self) -> None:
        few = interval([1.0, 2.0, 3.0], 0)
        many = interval([1.0, 2.0, 3.0] * 30, 0)
        assert few["mean"] == many["mean"] == 2
        assert few["low"] is not None is not few["high"]
        assert many["low"] is not None is not many["high"]
        assert few["low"] < many["low"] < 2 < many["high"] < few["high"]

    def test_one_text_has_none(self) -> None:
        assert interval([0.3], 0) == {"mean": 0.3, "low": None, "high": None}


class TestCurves:
    def test_leaves_out_what_another_setting_beats(self) -> None:
        points = [(0.3, 0.01), (0.1, 0.1), (0.2, 0.2), (0.4, 0.02)]
        assert curve(points) == [(0.1, 0.1), (0.3, 0.01)]

    @pytest.mark.parametrize(
        ("kl", "expected"),
        [(0.1, 0.1), (0.01, 0.3), (0.1**1.5, 0.2), (0.2, None), (0.001, None)],
    )
    def test_bytes_are_interpolated_between_points_alone(
        self, kl: float, expected: float | None
    ) -> None:
        found = fraction_at([(0.1, 0.1), (0.3, 0.01)], kl)
        assert found == (expected if expected is None else pytest.approx(expected))

    def test_a_lossless_end_is_reached_only_at_its_own_bytes(self) -> None:
        assert fraction_at([(0.1, 0.1), (1.0, 0.0)], 0.05) == 1.0


class TestFidelity:
    def test_reload_gives_what_the_codec_gives_and_the_rest_exact(self, model: Any) -> None:
        settings, ways = settings_of(), ways_of(model, 'lexico:{"sparsity":3}')
        exact = exact_text(model, prompt(176)[0].tolist(), settings)
        made, shelf = through_frames(exact, ways["raw"], settings.coded)
        assert torch.equal(made, exact.states)
        assert shelf.size > settings.coded * 4 * 2 * exact.states[:, 0, :, 0].numel()
        coded, small = through_frames(exact, ways["lexico s=3"], settings.coded)
        assert small.size < shelf.size / 4
        assert torch.equal(
            coded[:, :, :, settings.coded :], exact.states[:, :, :, settings.coded :]
        )
        assert torch.equal(coded[:, :, :, :4], exact.states[:, :, :, :4]), "sinks"
        assert not torch.equal(coded, exact.states)

    def test_errors_of_keys_and_values_are_apart(self) -> None:
        exact = torch.randn(3, 2, 2, 20, 8, generator=torch.Generator().manual_seed(0))
        made = exact.clone()
        made[1, 0] *= 0.5
        made[2, 1] = 0
        found = layer_errors(exact, made)
        assert found["keys"] == pytest.approx([0, 0.25, 0])
        assert found["values"] == pytest.approx([0, 0, 1])

    def test_caches_come_apart_and_together(self, model: Any) -> None:
        cache = cache_of()
        forward(model, prompt(9)[0].tolist(), cache, 1)
        states = states_of(cache)
        again = cache_of(states)
        first = forward(model, [5, 6], cache, 2)
        assert divergence(first, forward(model, [5, 6], again, 2)) == 0
        assert states.shape[3] == 9, "a cache that grows must not grow what it was made of"


class TestShelf:
    def test_stored_pages_are_never_coded_again(self, model: Any) -> None:
        way = ways_of(model, 'lexico:{"sparsity":3}')["lexico s=3"]
        exact = exact_text(model, prompt(176)[0].tolist(), settings_of())
        shelf = FrameShelf(way)
        assert shelf.store(exact.ids[:50], exact.states) == 3
        before = shelf.reload(exact.ids[:50], torch.float32, model.device)
        assert shelf.store(exact.ids[:70], 0 * exact.states + 1) == 1
        after = shelf.reload(exact.ids[:70], torch.float32, model.device)
        assert torch.equal(after[:, :, :, :48], before)

    def test_another_text_shares_its_common_pages_alone(self, model: Any) -> None:
        way = ways_of(model)["raw"]
        exact = exact_text(model, prompt(176)[0].tolist(), settings_of())
        shelf = FrameShelf(way)
        shelf.store(exact.ids[:160], exact.states)
        other = [*exact.ids[:40], 7, *exact.ids[41:]]
        assert shelf.reload(other, torch.float32, model.device).shape[3] == 32

    @pytest.mark.parametrize(
        ("tokens", "reloaded"), [(8, 0), (15, 0), (16, 8), (40, 32), (50, 42), (56, 48), (70, 48)]
    )
    def test_a_node_computes_the_newest_tokens(
        self, model: Any, tokens: int, reloaded: int
    ) -> None:
        """`recent_tokens` of them, 8 here."""
        exact = exact_text(model, prompt(176)[0].tolist(), settings_of())
        shelf = FrameShelf(ways_of(model)["raw"])
        shelf.store(exact.ids[:50], exact.states)
        cache, predicted, found = resume(model, shelf, exact.ids[:tokens], settings_of())
        assert (found, cache.get_seq_length()) == (reloaded, tokens)
        whole = forward(model, exact.ids[:tokens], cache_of(), 1)
        torch.testing.assert_close(predicted, whole, atol=1e-4, rtol=1e-4)


class TestTurns:
    def test_raw_stays_at_zero(self, model: Any) -> None:
        settings = settings_of(turn_tokens=PAGE)
        exact = exact_turns(model, prompt(300)[0].tolist(), settings)
        turns = converse(model, exact, partial(FrameShelf, ways_of(model)["raw"]), settings)
        assert [turn["turn"] for turn in turns] == [1, 2, 3]
        assert max(turn["kl"] for turn in turns) < 1e-6
        assert [turn["reloaded"] for turn in turns] == [152, 168, 184]

    def test_raw_stays_at_zero_where_prefixes_end_within_pages(self, model: Any) -> None:
        settings = settings_of(prefix=165)
        exact = exact_turns(model, prompt(300)[0].tolist(), settings)
        turns = converse(model, exact, partial(FrameShelf, ways_of(model)["raw"]), settings)
        assert max(turn["kl"] for turn in turns) < 1e-6
        assert [turn["reloaded"] for turn in turns] == [157, 176, 205]
        assert [turn["pages"] for turn in turns] == [1, 2, 1]
        assert turns[0]["nll"] == pytest.approx(turns[0]["nll_exact"], abs=1e-5)

    def test_first_reload_is_that_of_pages_coded_once(self, model: Any) -> None:
        settings = settings_of()
        exact = exact_turns(model, prompt(300)[0].tolist(), settings)
        way = ways_of(model, 'lexico:{"sparsity":3}')["lexico s=3"]
        turns = converse(model, exact, partial(FrameShelf, way), settings)
        assert turns[0]["kl"] == turns[0]["kl_once"] > 1e-4
        assert turns[2]["kl"] != turns[2]["kl_once"]
        assert turns[0]["bytes"] < turns[1]["bytes"] < turns[2]["bytes"]


class TestRetrieval:
    def task(self, number: int = 0, **changes: Any) -> retrieval.Task:
        tokenizer = Words()
        text = tokenizer(" ".join(f"w{i % 7}" for i in range(300)))["input_ids"]
        return make_task(tokenizer, text, settings_of(**changes), number)

    def test_context_holds_every_fact_once(self) -> None:
        task = self.task()
        assert len(task.context) == 160
        for question in task.questions:
            wanted = question.candidates[question.right]
            assert wanted == question.answer[0]
            assert task.context.count(wanted) == 1
            told = task.context.index(wanted)
            assert task.context[told - 3 : told] == question.prompt[-3:]
            assert len(set(question.candidates)) == len(question.candidates) > 1
        kinds = [question.kind for question in task.questions]
        assert sorted(kinds) == ["key-value"] * 3 + ["needle"]

    def test_needle_has_no_other_candidate_in_the_context(self) -> None:
        needles = [q for n in range(4) for q in self.task(n).questions if q.kind == "needle"]
        for text, needle in enumerate(needles):
            inside = [c for c in needle.candidates if c in self.task(text).context]
            assert inside == [needle.candidates[needle.right]]
        assert len({needle.depth for needle in needles}) == 4, "depths differ from text to text"

    def test_seed_decides(self) -> None:
        assert self.task() == self.task()
        assert self.task() != self.task(seed=1)
        assert self.task() != self.task(1)

    def test_raw_answers_as_the_exact_cache(self, model: Any) -> None:
        exact = exact_task(model, self.task())
        found = ask(model, exact, partial(FrameShelf, ways_of(model)["raw"]), settings_of())
        expected = exact.answers()
        for mode in retrieval.MODES:
            assert len(found[mode]) == 4
            for ours, theirs in zip(found[mode], expected[mode], strict=True):
                assert ours["right"] == theirs["right"]
                assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
                assert ours["kl"] < 1e-6

    def test_codes_are_seen(self, model: Any) -> None:
        exact = exact_task(model, self.task())
        way = ways_of(model, 'lexico:{"sparsity":2}')["lexico s=2"]
        found = ask(model, exact, partial(FrameShelf, way), settings_of())
        assert all(answer["kl"] > 1e-6 for mode in retrieval.MODES for answer in found[mode])

    def test_context_without_room_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="no room"):
            self.task(prefix=32, pairs=12)


class TestTexts:
    def test_texts_share_nothing_and_spare_ones_are_others(self) -> None:
        text = " ".join(f"w{i}" for i in range(2000))
        settings = settings_of(texts=3)
        source = cut("text", text, Words(), settings)
        assert [len(ids) for ids in source.texts] == [settings.window] * 3
        every = [token for ids in (*source.texts, *source.spare) for token in ids]
        assert source.spare
        assert len(set(every)) == len(every)

    def test_every_text_begins_as_the_tokenizer_wants(self) -> None:
        text = " ".join(f"w{i}" for i in range(2000))
        settings = settings_of(texts=2)
        source = cut("text", text, Words((1,)), settings)
        assert all(ids[0] == 1 and len(ids) == settings.window for ids in source.texts)

    def test_questions_and_answers(self, tmp_path: Path) -> None:
        path = tmp_path / "asked.jsonl"
        path.write_text("".join(json.dumps({"question": q, "answer": q * 2}) + "\n" for q in "ab"))
        assert read_text(path) == "a\naa\n\nb\nbb"

    def test_a_long_file_is_not_read_to_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[int] = []
        tokenize = prefixes.tokenize

        def counting(tokenizer: Any, text: str) -> list[int]:
            seen.append(len(text))
            return tokenize(tokenizer, text)

        monkeypatch.setattr(prefixes, "tokenize", counting)
        cut("text", "w " * 1_000_000, Words(), settings_of())
        assert max(seen) < 1_000_000
        cut("text", "w " * 1_000_000, Words(), settings_of(), whole=True)
        assert max(seen) == 2_000_000, "studies spread their windows over all of a text"
