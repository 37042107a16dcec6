"""Batches whose prompts are reloaded to different lengths: the tokens of the same batch without a
service, and pages that are right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTJConfig, GPTJForCausalLM

from lexico_client.engines.hf._catching_up import FORWARD_TOKENS, start_column
from lexico_client.hf import HuggingFaceCache, Session
from lexico_codec.hf_inputs import cache_inputs, cache_keyword
from tests.support.answers import PAGE_TOKENS, made
from tests.support.sessions import (
    PLAIN,
    STATIC_COUNTS,
    batch_of,
    ids_of,
    outcomes_of,
    sharing,
    warmed,
)
from tests.support.tiny_configs import OLD

LONG, SHORT, NEW, SINGLE = ids_of(150, 1), ids_of(43, 2), ids_of(61, 3), [7]
ROWS = [LONG, SHORT, LONG[:90] + NEW[:5], NEW, SINGLE]
HITS = [144, 40, 88, 0, 0]
STATIC = {"cache_implementation": "static"}
MODELS: dict[str, Any] = {
    "llama": lambda: made("llama"),
    "gpt-j": lambda: GPTJForCausalLM(GPTJConfig(**OLD | {"vocab_size": 97}, rotary_dim=8)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**OLD | {"vocab_size": 97})),
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    made = MODELS[request.param]().train(False)
    made.generation_config.eos_token_id = None
    return made


@pytest.fixture
def shared(model: Any, tmp_path: Path) -> Iterator[HuggingFaceCache]:
    with sharing(model, tmp_path) as shared:
        yield shared


@pytest.fixture
def session(shared: HuggingFaceCache) -> Iterator[Session]:
    with Session(shared) as session:
        warmed(session, [LONG, SHORT])
        yield session


@pytest.mark.parametrize("settings", [{}, STATIC], ids=["dynamic", "static"])
def test_prompts_with_different_hits(
    model: Any, session: Session, settings: dict[str, Any]
) -> None:
    if settings and not STATIC_COUNTS:
        pytest.skip("static caches of this transformers are refused")
    batch = batch_of(ROWS)
    expected = model.generate(**batch, **PLAIN)
    got = session.generate(**batch, **PLAIN | settings)
    assert torch.equal(got.output, expected)
    assert [prompt.reloaded_tokens for prompt in got.report.prompts] == HITS
    assert outcomes_of(got.report) == ["p" * 18 + "s", "p" * 5 + "s", "p" * 11 + "s", "s" * 8, "s"]
    again = session.generate(**batch, **PLAIN | settings)
    assert torch.equal(again.output, expected)
    assert [prompt.reloaded_tokens for prompt in again.report.prompts] == [144, 40, 88, 56, 0]
    assert again.report.prefilled_tokens < got.report.prefilled_tokens


def test_pages_of_a_batch_are_those_of_each_prompt_alone(
    model: Any, shared: HuggingFaceCache, session: Session
) -> None:
    """Padding and the other prompts leave no trace in them."""
    got = session.generate(**batch_of(ROWS), **PLAIN)
    got.report.offloads()
    for row, prompt in enumerate(ROWS):
        sequence = torch.tensor([prompt + got.answers[row].tolist()])
        hit = shared.load(sequence)
        assert hit.tokens == (len(prompt) + 8) // PAGE_TOKENS * PAGE_TOKENS
        with torch.no_grad():
            fresh = model(sequence, use_cache=True)
        cache = getattr(fresh, cache_keyword(model))
        for ours, theirs in zip(hit.cache.layers, cache.layers, strict=True):
            for half in ("keys", "values"):
                wanted = getattr(theirs, half)[:, :, : hit.tokens]
                torch.testing.assert_close(getattr(ours, half), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"guidance_scale": 1.5},
    ],
    ids=str,
)
def test_ways_of_generate(model: Any, session: Session, settings: dict[str, Any]) -> None:
    batch = batch_of(ROWS[:4])
    outputs: list[Any] = []
    for generate in (model.generate, session.generate):
        torch.manual_seed(5)
        outputs.append(generate(**batch, **PLAIN | settings))
    assert torch.equal(outputs[1].output, outputs[0])
    assert [prompt.reloaded_tokens for prompt in outputs[1].report.prompts] == HITS[:4]
    assert [each.error for each in outputs[1].report.offloads()] == [None] * len(
        outputs[1].report.offloads()
    )


def test_answers_that_end_before_others(model: Any, session: Session) -> None:
    """What stands behind the end of an answer is no part of it."""
    batch = batch_of([SHORT, LONG])
    plain = model.generate(**batch, **PLAIN | {"max_new_tokens": 14})
    end = int(plain[0, 150 + 3])
    ending = PLAIN | {"max_new_tokens": 14, "eos_token_id": end}
    expected = model.generate(**batch, **ending)
    tail = expected[0, 150:].tolist()
    length = tail.index(end) + 1
    got = session.generate(**batch, **ending)
    assert torch.equal(got.output, expected)
    first = got.report.offloads()[0].report
    assert first is not None
    # The end itself has keys and values, unless the batch ended with it.
    held = 43 + length - (length == len(tail))
    assert first.tokens == held // PAGE_TOKENS * PAGE_TOKENS


def test_every_row_as_long_as_the_others(model: Any, session: Session) -> None:
    rows = [SHORT, NEW[:43], SHORT]
    ids = torch.tensor(rows)
    got = session.generate(ids, attention_mask=torch.ones_like(ids), **PLAIN)
    assert torch.equal(got.output, model.generate(ids, **PLAIN))
    assert [prompt.reloaded_tokens for prompt in got.report.prompts] == [40, 0, 40]
    assert outcomes_of(got.report)[0] == "p" * 5 + "s"
    assert outcomes_of(got.report)[2] == "p" * 6


def test_a_model_that_is_told_no_positions_reloads_no_padded_prompt(
    model: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, forward = type(model), type(model).forward

    def without(self: Any, input_ids: Any = None, attention_mask: Any = None, **kw: Any) -> Any:
        return forward(self, input_ids, attention_mask=attention_mask, **kw)

    without.__signature__ = _signature_without_positions(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(kind, "forward", without)
    batch = batch_of([LONG, SHORT])
    expected = model.generate(**batch, **PLAIN)
    got = session.generate(**batch, **PLAIN)
    assert torch.equal(got.output, expected)
    assert [prompt.reloaded_tokens for prompt in got.report.prompts] == [144, 0]
    assert "position_ids" in str(got.report.prompts[1].reason)
    assert outcomes_of(got.report)[1] == "", "its keys stand at other positions"


def _signature_without_positions(forward: Any) -> Any:
    import inspect

    signature = inspect.signature(forward)
    kept = [each for name, each in signature.parameters.items() if name != "position_ids"]
    return signature.replace(parameters=kept)


def test_prefilled_by_hand_from_the_middle_of_a_batch(
    model: Any, shared: HuggingFaceCache, session: Session
) -> None:
    """The cache that comes back goes on as the plain one does."""
    batch = batch_of([SHORT, LONG])
    settings = PLAIN | {"return_dict_in_generate": True}
    outputs = [model.generate(**batch, **settings), session.generate(**batch, **settings).output]
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 9).long()], 1)
    logits = [
        model(
            out.sequences[:, -1:],
            attention_mask=mask,
            position_ids=mask.cumsum(1)[:, -1:] - 1,
            **cache_inputs(model, getattr(out, cache_keyword(model))),
        ).logits
        for out in outputs
    ]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("ready", "columns", "start"),
    [
        ([0], 1500, 0),
        ([1440], 1500, 1440),
        ([0, 0, 0], 1500, 0),
        ([1440, 1440], 1500, 1440),
        ([1440, 0], 1500, 1440),
        ([0, 40], 150, 0),
        ([1440, 1440, 1440, 0], 1500, 1440),
        ([600, 1440], 1500, 1440),
        ([1499, 1499], 1500, 1499),
    ],
)
def test_where_a_batch_goes_on(ready: list[int], columns: int, start: int) -> None:
    assert start_column(ready, columns) == start


def test_no_column_is_cheaper() -> None:
    ready = [10, 300, 700, 1300, 1300]

    def cost(start: int) -> int:
        alone = sum(start - each + FORWARD_TOKENS for each in ready if each < start)
        return alone + 5 * (1500 - start)

    assert cost(start_column(ready, 1500)) == min(map(cost, range(1500)))
