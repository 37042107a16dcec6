"""One call that reloads, generates and offloads: the output of `generate`, and a true report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TextIteratorStreamer

from lexico_client.hf import HuggingFaceCache, Session
from lexico_codec.hf_inputs import cache_keyword
from tests.support.answers import IDS, PAGE_TOKENS, TOKENS, WAYS, answer, made, tokens
from tests.support.coded_models import DICTIONARY, llama
from tests.support.sessions import PLAIN, chat_tokenizer, outcomes_of, sharing, words_of

NEAR: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
TEMPLATE = "{% for m in messages %}w{{ m.role | length }} {{ m.content }} {% endfor %}w9"
FORGETFUL = (  # of earlier answers it leaves out the first word, as templates do with thinking
    "{% for m in messages %}w{{ m.role | length }} "
    "{% if m.role == 'assistant' %}{{ m.content.split(' ')[1:] | join(' ') }}"
    "{% else %}{{ m.content }}{% endif %} {% endfor %}w9"
)


@pytest.fixture(scope="module")
def model() -> Any:
    return made("llama")


@pytest.fixture
def shared(model: Any, tmp_path: Path) -> Iterator[HuggingFaceCache]:
    with sharing(model, tmp_path) as shared:
        yield shared


@pytest.fixture
def session(shared: HuggingFaceCache) -> Iterator[Session]:
    with Session(shared) as session:
        yield session


def test_a_miss_then_a_hit_then_an_answer_that_is_there(model: Any, session: Session) -> None:
    expected = model.generate(IDS, **PLAIN)
    miss = session.generate(IDS, **PLAIN)
    assert torch.equal(miss.output, expected)
    assert torch.equal(miss.answers, expected[:, TOKENS:])
    (prompt,) = miss.report.prompts
    assert (prompt.tokens, prompt.reloaded_tokens, prompt.reason) == (TOKENS, 0, None)
    assert miss.report.prefilled_tokens == TOKENS
    assert outcomes_of(miss.report) == ["s" * 7], "58 of 59 tokens have keys and values"
    hit = session.generate(IDS, **PLAIN)
    assert torch.equal(hit.output, expected)
    (prompt,) = hit.report.prompts
    assert (prompt.reloaded_tokens, prompt.pages, prompt.familiar_tokens) == (48, 6, TOKENS)
    assert hit.report.prefilled_tokens == 2
    assert outcomes_of(hit.report) == ["p" * 7]
    assert str(hit.report) == ("prompt 0: 48 of 50 tokens reloaded in 6 pages\n2 tokens prefilled")
    turn = torch.cat([expected, tokens(5, seed=8)], 1)
    second = session.generate(turn, **PLAIN)
    assert second.report.reloaded_tokens == 56
    assert torch.equal(second.output, model.generate(turn, **PLAIN))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_generate(model: Any, session: Session, way: str) -> None:
    session.generate(IDS, **PLAIN).report.offloads()
    changes = {name: value for name, value in WAYS[way].items() if name != "attention_mask"}
    torch.manual_seed(5)
    got = session.generate(IDS, max_new_tokens=7, **{"do_sample": False} | changes)
    assert torch.equal(got.output, answer(model, IDS, **WAYS[way]))
    assert got.report.reloaded_tokens == 48
    assert set("".join(outcomes_of(got.report))) <= {"p", "s"}


def test_what_is_stored_by_a_way_is_what_the_model_computes(
    model: Any, shared: HuggingFaceCache, session: Session
) -> None:
    """Also by ways that crop, reorder and repeat the cache."""
    for seed, way in enumerate(("beams", "several answers", "prompt lookup", "guidance")):
        changes = {name: value for name, value in WAYS[way].items() if name != "attention_mask"}
        ids = tokens(21, seed=20 + seed)
        got = session.generate(ids, max_new_tokens=12, **{"do_sample": False} | changes)
        assert [outcome.error for outcome in got.report.offloads()] == [None] * len(
            got.report.offloads()
        )
        sequence = ids if "num_beams" in changes else got.sequences[:1]
        tokens_stored = got.report.offloads()[0].report.tokens  # type: ignore[union-attr]
        assert tokens_stored >= 16
        hit = shared.load(torch.cat([sequence, tokens(1)], 1))
        assert hit.tokens == tokens_stored, way
        with torch.no_grad():
            fresh = model(sequence, use_cache=True)
        cache = getattr(fresh, cache_keyword(model))
        for ours, theirs in zip(hit.cache.layers, cache.layers, strict=True):
            for half in ("keys", "values"):
                torch.testing.assert_close(
                    getattr(ours, half), getattr(theirs, half)[:, :, : hit.tokens], **NEAR
                )


def test_outputs_with_everything_in_them(model: Any, session: Session) -> None:
    settings = PLAIN | {"return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(IDS, **settings)
    for _ in range(2):
        got = session.generate(IDS, **settings)
        got.report.offloads()
        assert torch.equal(got.sequences, plain.sequences)
        torch.testing.assert_close(torch.stack(got.output.logits), torch.stack(plain.logits))
        cache = getattr(got.output, cache_keyword(model))
        assert cache.get_seq_length() == TOKENS + 8


def test_the_cache_that_it_returns_is_the_callers(
    model: Any, shared: HuggingFaceCache, session: Session
) -> None:
    """What becomes of it does not change what is being offloaded."""
    settings = PLAIN | {"return_dict_in_generate": True}
    got = session.generate(IDS, **settings, offload=False)
    assert got.report.offloads() == ()
    got = session.generate(IDS, **settings)
    cache = getattr(got.output, cache_keyword(model))
    cache.crop(-30)
    with torch.no_grad():
        model(tokens(30, seed=1), **{cache_keyword(model): cache})
    assert outcomes_of(got.report) == ["s" * 7]
    assert torch.equal(session.generate(IDS, **PLAIN).output, model.generate(IDS, **PLAIN))


def test_a_streamer(model: Any, shared: HuggingFaceCache) -> None:
    tokenizer: Any = chat_tokenizer(TEMPLATE)
    plain = model.generate(IDS, **PLAIN)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    with Session(shared, tokenizer=tokenizer) as session:
        got = session.generate(IDS, **PLAIN, streamer=streamer)
        assert "".join(streamer).split() == tokenizer.decode(plain[0, TOKENS:]).split()
        assert torch.equal(got.output, plain)


def test_conversations(model: Any, shared: HuggingFaceCache) -> None:
    tokenizer: Any = chat_tokenizer(TEMPLATE)
    first: Any = [{"role": "user", "content": words_of(range(20, 60))}]
    with Session(shared, tokenizer=tokenizer) as session:
        got = session.generate(messages=first, **PLAIN)
        assert outcomes_of(got.report) == ["s" * 6], "42 + 8 tokens"
        said = tokenizer.decode(got.answers[0], skip_special_tokens=False)
        second: Any = [
            *first,
            {"role": "assistant", "content": said},
            {"role": "user", "content": "w5"},
        ]
        following = session.generate(messages=second, **PLAIN)
        (prompt,) = following.report.prompts
        assert (prompt.familiar_tokens, prompt.reloaded_tokens) == (51, 48)
        both = session.generate(messages=[first, second], **PLAIN)
        assert [each.reloaded_tokens for each in both.report.prompts] == [40, 48]
        assert torch.equal(both.answers[1], following.answers[0])


def test_a_template_that_renders_earlier_turns_anew_says_so(
    model: Any, shared: HuggingFaceCache
) -> None:
    asked: Any = [
        {"role": "user", "content": words_of(range(20, 50))},
        {"role": "assistant", "content": words_of(range(50, 80))},
        {"role": "user", "content": "w7 w8"},
    ]
    with Session(shared, tokenizer=chat_tokenizer(TEMPLATE)) as session:
        session.generate(messages=asked, **PLAIN).report.offloads()
        forgetful = session.generate(messages=asked, tokenizer=chat_tokenizer(FORGETFUL), **PLAIN)
        (prompt,) = forgetful.report.prompts
        assert (prompt.familiar_tokens, prompt.reloaded_tokens) == (32, 32 // PAGE_TOKENS * 8)
        assert prompt.reason is None


def test_what_is_lossy_leaves_the_newest_tokens_to_the_model(tmp_path: Path) -> None:
    model = llama(attn_implementation="sdpa")
    with (
        sharing(
            model,
            tmp_path,
            codec="lexico",
            codec_config={"sparsity": 3},
            dictionary=DICTIONARY,
            recent_tokens=12,
        ) as shared,
        Session(shared) as session,
    ):
        assert outcomes_of(session.generate(IDS, **PLAIN).report) == ["s" * 7]
        report = session.generate(IDS, **PLAIN).report
        assert (report.reloaded_tokens, report.prefilled_tokens) == (38, 12)
