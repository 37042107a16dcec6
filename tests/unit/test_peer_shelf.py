"""What a published method would hold of a conversation, and what tokens weigh in it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lexico_codec.geometry import Rope
from lexico_codec.hf_geometry import geometry_of
from lexico_lab.evaluation import peers
from lexico_lab.evaluation.fidelity import through_shelf
from lexico_lab.evaluation.peer_shelf import PeerShelf
from lexico_lab.evaluation.peers import importance_of, prefix_of
from lexico_lab.evaluation.prefixes import ExactText, exact_text
from lexico_lab.evaluation.settings import EvalSettings, Split
from lexico_lab.evaluation.turns import converse, exact_turns, resume
from lexico_lab.published.coder import Coder, Prefix, Stored
from lexico_lab.published.kivi import Kivi
from lexico_lab.published.per_token import PerToken
from lexico_lab.published.zipcache import ZipCache
from tests.support.coded_models import KV_HEADS, LAYERS, Q_HEADS, llama, prompt
from tests.support.tiny_evaluation import tiny_settings

PAGE, HEAD_DIM, SINKS = 16, 32, 4


def never(*_: Any) -> Any:
    raise AssertionError("was asked for")


class Listening(PerToken):
    """Knows which positions it was given."""

    def __init__(self) -> None:
        super().__init__(4)
        self.given: list[tuple[int, int]] = []

    def code(self, prefix: Prefix) -> Stored:
        self.given.append((int(prefix.positions[0]), int(prefix.positions[-1]) + 1))
        return super().code(prefix)


@pytest.fixture(scope="module")
def model() -> Any:
    return llama(attn_implementation="sdpa", head_dim=HEAD_DIM)


@pytest.fixture(scope="module")
def rope(model: Any) -> Rope:
    found = geometry_of(model.config, "float32").rope
    assert found is not None
    return found


@pytest.fixture
def settings(tmp_path: Path) -> EvalSettings:
    return tiny_settings(tmp_path)


@pytest.fixture(scope="module")
def exact(model: Any) -> ExactText:
    split = Split(prefix=165, continuation=16, page_tokens=PAGE)
    return exact_text(model, prompt(181)[0].tolist(), split)


def shelf_of(coder: Coder, rope: Rope, weigh: Any = never) -> PeerShelf:
    return PeerShelf(coder, rope, PAGE, weigh)


def reloaded(shelf: PeerShelf, ids: Any) -> Tensor:
    return shelf.reload(ids, torch.float32, torch.device("cpu"))


@torch.inference_mode()
def importance_by_hand(model: Any, ids: Any) -> Tensor:
    """`[tokens]`, in the first layer: softmax(q k) over the queries that see a token."""
    layer = model.model.layers[0]
    hidden = layer.input_layernorm(model.model.embed_tokens(torch.tensor([list(ids)])))
    projected = (layer.self_attn.q_proj(hidden), layer.self_attn.k_proj(hidden))
    q, k = (part.unflatten(2, (-1, HEAD_DIM)).transpose(1, 2) for part in projected)
    rotation = model.model.rotary_emb(hidden, torch.arange(len(ids))[None])
    q, k = apply_rotary_pos_emb(q, k, *rotation)
    scores = q @ k.repeat_interleave(Q_HEADS // KV_HEADS, 1).mT / HEAD_DIM**0.5
    sees = torch.ones(len(ids), len(ids)).tril().bool()
    weights = scores.masked_fill(~sees, -torch.inf).softmax(-1)[0].mean(0)
    return weights.sum(0) / sees.sum(0)


class TestShelf:
    @pytest.mark.parametrize(
        "coder", [PerToken(3), Kivi(4, 16), ZipCache(40)], ids=lambda coder: coder.name
    )
    def test_a_prefix_is_what_the_method_gives(
        self, model: Any, rope: Rope, exact: ExactText, coder: Coder
    ) -> None:
        """As before there were shelves: one range without the sinks, which are exact."""
        coded = 144
        importance = importance_of(model, exact.ids[:165])
        range_ = slice(SINKS, coded)
        stored = coder.code(prefix_of(exact.states, importance, range_, rope))
        expected = exact.states.clone()
        expected[:, 0, :, range_] = stored.keys.transpose(1, 2)
        expected[:, 1, :, range_] = stored.values.transpose(1, 2)
        shelf = shelf_of(coder, rope, lambda *_: importance)
        made = through_shelf(exact, shelf, coded)
        assert torch.equal(made, expected)
        assert torch.equal(made[:, :, :, :SINKS], exact.states[:, :, :, :SINKS])
        assert not torch.equal(made, exact.states)
        assert shelf.size == stored.size + 2 * exact.states[:, :, :, :SINKS].numel()

    def test_what_is_stored_is_never_coded_again(self, rope: Rope, exact: ExactText) -> None:
        coder = Listening()
        shelf = shelf_of(coder, rope)
        assert shelf.store(exact.ids[:50], exact.states) == 3
        assert shelf.store(exact.ids[:63], exact.states) == 0
        before = reloaded(shelf, exact.ids[:50])
        assert shelf.store(exact.ids[:100], 0 * exact.states + 1) == 3
        assert coder.given == [(SINKS, 48), (48, 96)]
        assert torch.equal(reloaded(shelf, exact.ids[:100])[:, :, :, :48], before)

    def test_ranges_add_up(self, rope: Rope, exact: ExactText) -> None:
        """Of a method that codes every token by itself."""
        parts, whole = shelf_of(PerToken(4), rope), shelf_of(PerToken(4), rope)
        for end in (50, 70, 160):
            parts.store(exact.ids[:end], exact.states)
        whole.store(exact.ids[:160], exact.states)
        assert parts.size == whole.size
        ids = exact.ids[:161]
        assert torch.equal(reloaded(parts, ids), reloaded(whole, ids))

    def test_whole_pages_come_back_of_a_part_of_a_range(self, rope: Rope, exact: ExactText) -> None:
        shelf = shelf_of(Kivi(2, 16), rope)
        shelf.store(exact.ids[:160], exact.states)
        part = reloaded(shelf, exact.ids[:100])
        assert part.shape == (LAYERS, 2, 2, 96, HEAD_DIM)
        assert torch.equal(part, reloaded(shelf, exact.ids[:161])[:, :, :, :96])
        assert reloaded(shelf, exact.ids[:95]).shape[3] == 80

    def test_another_text_shares_its_common_pages_alone(self, rope: Rope, exact: ExactText) -> None:
        shelf = shelf_of(PerToken(4), rope)
        shelf.store(exact.ids[:160], exact.states)
        other = [*exact.ids[:40], (exact.ids[40] + 1) % 97, *exact.ids[41:]]
        assert reloaded(shelf, other).shape[3] == 32
        assert shelf.store(other[:64], exact.states) == 2
        assert reloaded(shelf, other).shape[3] == 64

    def test_a_miss_is_prefilled(
        self, model: Any, rope: Rope, exact: ExactText, settings: EvalSettings
    ) -> None:
        cache, _, found = resume(model, shelf_of(PerToken(4), rope), exact.ids[:40], settings)
        assert found == 0
        assert cache.get_seq_length() == 40

    def test_importance_is_that_of_the_new_tokens(
        self, model: Any, exact: ExactText, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = importance_of(model, exact.ids[:165])
        expected = importance_by_hand(model, exact.ids[:165])
        torch.testing.assert_close(whole[0], expected, atol=1e-6, rtol=1e-4)
        later = importance_of(model, exact.ids[:165], exact.states[:, :, :, :96])
        torch.testing.assert_close(later[:, 96:], whole[:, 96:], atol=1e-6, rtol=1e-4)
        monkeypatch.setattr(peers, "_QUERIES", 63)
        torch.testing.assert_close(
            importance_of(model, exact.ids[:165]), whole, atol=1e-6, rtol=1e-4
        )

    def test_tokens_are_weighed_on_the_cache_that_is_stored(
        self, model: Any, rope: Rope, exact: ExactText
    ) -> None:
        asked: list[tuple[int, int]] = []

        def weigh(ids: Any, known: Tensor) -> Tensor:
            asked.append((len(ids), known.shape[3]))
            return importance_of(model, ids, known)

        shelf = shelf_of(ZipCache(40), rope, weigh)
        shelf.store(exact.ids[:50], exact.states)
        shelf.store(exact.ids[:100], exact.states)
        assert asked == [(50, 0), (100, 48)]


class TestTurns:
    def test_errors_pile_up_after_the_first_reload(
        self, model: Any, rope: Rope, settings: EvalSettings
    ) -> None:
        exact = exact_turns(model, prompt(272)[0].tolist(), settings)
        turns = converse(model, exact, partial(shelf_of, Kivi(2, 16), rope), settings)
        assert turns[0]["kl"] == turns[0]["kl_once"] > 1e-4
        assert turns[1]["kl"] != turns[1]["kl_once"]
        assert [turn["reloaded"] for turn in turns] == [200, 232]
        assert [turn["pages"] for turn in turns] == [2, 2]
        assert turns[0]["bytes"] < turns[1]["bytes"]
