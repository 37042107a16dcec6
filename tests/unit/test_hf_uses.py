"""Everything that people do with `hit.inputs` and `hit.cache`: the tokens of the same call without
them, or an error that names the way."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
)

from lexico_client import Client, InMemoryTransport
from lexico_client.engines.hf._hits import Hit
from lexico_client.hf import HuggingFaceCache
from lexico_codec.hf_inputs import cache_inputs, cache_keyword
from lexico_proto import errors
from tests.support.answers import (
    IDS,
    LOADED,
    MODELS,
    PAGE_TOKENS,
    TOKENS,
    WAYS,
    answer,
    made,
    tokens,
)
from tests.support.client_fixtures import PATIENT
from tests.support.waiting import PATIENCE_S


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


@pytest.fixture
def shared(model: Any, tmp_path: Path) -> Iterator[HuggingFaceCache]:
    with Client(
        transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        shared = HuggingFaceCache(client, model, codec="raw", page_tokens=PAGE_TOKENS)
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(IDS, **cache_inputs(model, cache))
        shared.offload(IDS, cache)
        yield shared


@pytest.fixture
def hit(shared: HuggingFaceCache) -> Hit:
    hit = shared.load(IDS)
    assert hit.tokens == LOADED
    return hit


@pytest.mark.parametrize("way", WAYS)
def test_generate(model: Any, hit: Hit, way: str) -> None:
    assert torch.equal(answer(model, IDS, hit.inputs, **WAYS[way]), answer(model, IDS, **WAYS[way]))


def test_a_prefill_in_chunks(model: Any, hit: Hit) -> None:
    chunks: dict[str, Any] = {"prefill_chunk_size": 1}
    got, refused = None, ""
    try:
        got = answer(model, IDS, hit.inputs, **chunks)
    except errors.InvalidInput as error:
        refused = str(error)
    if got is None:  # some transformers before 5.24 take whole prompts alone
        assert cache_keyword(model) != "cache"
        assert "position_ids" in refused
    else:
        assert torch.equal(got, answer(model, IDS, **chunks))


def test_an_assistant(model: Any, hit: Hit) -> None:
    other = made(next(name for name, make in MODELS.items() if isinstance(model, type(make()))), 1)
    for assistant in (other, copy.deepcopy(other)):
        got = answer(model, IDS, hit.inputs, assistant_model=assistant)
        assert torch.equal(got, answer(model, IDS))


@pytest.mark.parametrize(
    "refused",
    [
        {"cache_implementation": "static"},
        {"cache_implementation": "quantized"},
        {"cache_implementation": "offloaded"},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"custom_generate": "somebody/else"},
        {"use_cache": False},
    ],
    ids=lambda settings: next(iter(settings)) + "=" + str(next(iter(settings.values()))),
)
def test_what_is_refused_says_what_to_leave_out(
    model: Any, hit: Hit, refused: dict[str, Any]
) -> None:
    with pytest.raises(errors.Unsupported, match="leave"):
        answer(model, IDS, hit.inputs, **refused)
    assert torch.equal(answer(model, IDS, hit.inputs), answer(model, IDS))


def test_one_hit_for_several_questions(model: Any, shared: HuggingFaceCache, hit: Hit) -> None:
    questions = [torch.cat([IDS[:, :LOADED], tokens(5 + n, seed=n)], 1) for n in range(4)]
    for question in (IDS, *questions):
        assert torch.equal(answer(model, question, hit.inputs), answer(model, question))
    assert hit.inputs[next(iter(hit.inputs))] is not hit.cache
    assert hit.cache.get_seq_length() == TOKENS + 6, "the first question's"


@pytest.mark.parametrize("cropped", [False, True], ids=["by generate", "by hand"])
def test_the_next_question_after_one_that_left_the_prefix(
    model: Any, shared: HuggingFaceCache, hit: Hit, cropped: bool
) -> None:
    """The first cache is cropped and then grows past the prefix, by other tokens."""
    if cropped:
        hit.cache.crop(20 - LOADED)
        model(IDS[:, 20:22], **cache_inputs(model, hit.cache))
        model(tokens(40, seed=4), **cache_inputs(model, hit.cache))
    else:
        answer(model, IDS[:, :20], hit.inputs, max_new_tokens=40)
    assert hit.cache.get_seq_length() > LOADED
    inputs = hit.inputs
    assert torch.equal(answer(model, IDS, inputs), answer(model, IDS))
    (cache,) = inputs.values()
    shared.offload(IDS, cache)


def test_one_hit_for_several_questions_at_a_time(model: Any, hit: Hit) -> None:
    questions = [torch.cat([IDS[:, :LOADED], tokens(5 + n, seed=n)], 1) for n in range(6)]
    expected = [answer(model, question) for question in questions]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda question: answer(model, question, hit.inputs), questions))
    for got, wanted in zip(answers, expected, strict=True):
        assert torch.equal(got, wanted)


def test_a_batch_of_questions_about_one_text(model: Any, hit: Hit) -> None:
    batch = torch.cat([torch.cat([IDS[:, :LOADED], tokens(6, seed=seed)], 1) for seed in range(3)])
    assert torch.equal(answer(model, batch, hit.inputs), answer(model, batch))


def test_a_cache_that_is_given_twice_by_hand(model: Any, hit: Hit) -> None:
    other = torch.cat([IDS[:, :LOADED], tokens(9, seed=9)], 1)
    by_hand = cache_inputs(model, hit.cache)
    answer(model, IDS, by_hand)
    with pytest.raises(errors.InvalidInput, match=r"\*\*hit.inputs again"):
        answer(model, other, by_hand)
    assert torch.equal(answer(model, other, hit.inputs), answer(model, other))


def test_a_cache_that_two_threads_share(model: Any, hit: Hit) -> None:
    inside, release = threading.Event(), threading.Event()

    def wait(batch: int, ids: Tensor) -> list[int]:
        inside.set()
        release.wait(PATIENCE_S)
        return list(range(97))

    by_hand = cache_inputs(model, hit.cache)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(answer, model, IDS, by_hand, prefix_allowed_tokens_fn=wait)
        assert inside.wait(PATIENCE_S)
        with pytest.raises(errors.InvalidInput, match="another generate is at work"):
            answer(model, IDS, by_hand)
        release.set()
        assert torch.equal(first.result(), answer(model, IDS))


@pytest.mark.parametrize("seed", [0, 1])
def test_another_prompt_is_refused(model: Any, hit: Hit, seed: int) -> None:
    other = tokens(TOKENS, seed=seed)
    other[:, LOADED:] = IDS[:, LOADED:]  # the same question about another text
    with pytest.raises(errors.InvalidInput, match="does not begin with the tokens"):
        answer(model, other, hit.inputs)


@pytest.mark.parametrize("count", [1, 7, LOADED - 1, LOADED, LOADED + 1])
def test_a_prompt_as_long_as_the_prefix_or_shorter(model: Any, hit: Hit, count: int) -> None:
    for _ in range(2):
        got = answer(model, IDS[:, :count], hit.inputs)
        assert torch.equal(got, answer(model, IDS[:, :count]))


def test_going_on_after_an_answer(model: Any, shared: HuggingFaceCache, hit: Hit) -> None:
    first = answer(model, IDS, hit.inputs)
    turn = torch.cat([first, tokens(6, seed=8)], 1)
    second = answer(model, turn, cache_inputs(model, hit.cache))
    assert torch.equal(second, answer(model, turn))
    guessing = WAYS["prompt lookup"]
    third = answer(model, second, cache_inputs(model, hit.cache), **guessing)
    assert torch.equal(third, answer(model, second, **guessing))
    assert set(shared.offload(third, hit.cache).pages) == {"present", "stored"}
    assert shared.load(third).tokens == third.shape[1] // PAGE_TOKENS * PAGE_TOKENS


def test_going_on_after_beams(model: Any, hit: Hit) -> None:
    best = answer(model, IDS, hit.inputs, num_beams=3)
    with pytest.raises(errors.InvalidInput, match="not known"):
        answer(model, best, cache_inputs(model, hit.cache))
    assert torch.equal(answer(model, best, hit.inputs), answer(model, best))


def test_the_rest_alone_with_a_mask_of_all(model: Any, hit: Hit) -> None:
    if cache_keyword(model) != "cache":
        pytest.skip("transformers before 5.24 takes whole prompts alone")
    rest = IDS[:, hit.tokens :]
    got = answer(model, rest, hit.inputs, attention_mask=torch.ones_like(IDS))
    assert torch.equal(got[:, 2:], answer(model, IDS)[:, TOKENS:])


@torch.inference_mode()
def test_the_model_by_hand(model: Any, hit: Hit) -> None:
    expected, rest = model(IDS).logits[:, LOADED:], IDS[:, hit.tokens :]
    positions = torch.arange(LOADED, TOKENS)[None]
    for further in ({}, {"position_ids": positions}, {"attention_mask": torch.ones_like(IDS)}):
        got = model(rest, **hit.inputs, **further).logits
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    got = model(rest.repeat(3, 1), **hit.inputs).logits
    torch.testing.assert_close(got, expected.repeat(3, 1, 1), atol=1e-4, rtol=1e-4)
    last = [model(token[:, None], **inputs).logits for inputs in [hit.inputs] for token in rest.T]
    torch.testing.assert_close(torch.cat(last, 1), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_model_by_hand_and_wrongly(model: Any, hit: Hit) -> None:
    rest = IDS[:, hit.tokens :]
    with pytest.raises(errors.InvalidInput, match=r"input_ids\[:, hit.tokens:\]"):
        model(IDS, **hit.inputs)
    with pytest.raises(errors.InvalidInput, match="next token has position 48"):
        model(rest, **hit.inputs, position_ids=torch.arange(2)[None])
    padded = torch.cat([torch.zeros(1, 3), torch.ones(1, TOKENS - 3)], 1).long()
    with pytest.raises(errors.InvalidInput, match="without padding"):
        answer(model, IDS, hit.inputs, attention_mask=padded)


def test_what_a_cache_can_do(model: Any, hit: Hit) -> None:
    forks = [copy.deepcopy(hit.cache) for _ in range(2)]
    for fork, seed in zip(forks, (1, 2), strict=True):
        question = torch.cat([IDS[:, :LOADED], tokens(4, seed)], 1)
        got = answer(model, question, cache_inputs(model, fork))
        assert torch.equal(got, answer(model, question))
    hit.cache.crop(-20)
    assert torch.equal(answer(model, IDS, cache_inputs(model, hit.cache)), answer(model, IDS))
    hit.cache.batch_repeat_interleave(3)
    with pytest.raises(errors.LexicoError):
        answer(model, IDS, cache_inputs(model, hit.cache))
    repeated = copy.deepcopy(forks[0])
    repeated.crop(LOADED - repeated.get_seq_length())
    repeated.batch_repeat_interleave(3)
    repeated.reorder_cache(torch.LongTensor([2, 0, 1]))
    got = answer(model, IDS, cache_inputs(model, repeated), num_beams=3)
    assert torch.equal(got, answer(model, IDS, num_beams=3))
    assert torch.equal(answer(model, IDS, hit.inputs), answer(model, IDS))


def test_a_miss_takes_every_way(model: Any, shared: HuggingFaceCache) -> None:
    other = tokens(TOKENS, seed=7)
    miss = shared.load(other)
    assert miss.tokens == 0
    for way in ("greedy", "beams", "several answers", "prompt lookup"):
        got = answer(model, other, miss.inputs, **WAYS[way])
        assert torch.equal(got, answer(model, other, **WAYS[way]))
    with pytest.raises(errors.Unsupported, match="leave"):
        answer(model, other, miss.inputs, cache_implementation="static")


def test_other_ids_are_not_offloaded(model: Any, shared: HuggingFaceCache, hit: Hit) -> None:
    out = answer(model, IDS, hit.inputs)
    other = out.clone()
    other[0, 52] = (other[0, 52] + 1) % 97
    with pytest.raises(errors.InvalidInput, match="from position 52 on"):
        shared.offload(other, hit.cache)
    with pytest.raises(errors.InvalidInput, match="from position 0 on"):
        shared.offload((out + 1) % 97, hit.cache)
    assert shared.offload(out, hit.cache).tokens == 56


@pytest.mark.parametrize("way", ["embeddings", "rows"])
def test_what_a_cache_has_grown_by_unseen_is_not_offloaded(
    model: Any, shared: HuggingFaceCache, hit: Hit, way: str
) -> None:
    rest = IDS[:, hit.tokens :]
    with torch.inference_mode():
        if way == "rows":
            model(rest.repeat(2, 1), **hit.inputs)
            hit.cache.batch_select_indices(torch.tensor([1]))
        else:
            embedded = model.get_input_embeddings()(rest)
            model(inputs_embeds=embedded, **hit.inputs)
    with pytest.raises(errors.InvalidInput, match=f"from position {hit.tokens} on is not known"):
        shared.offload(IDS, hit.cache)
    assert shared.offload(IDS[:, : hit.tokens], hit.cache).tokens == hit.tokens


def test_a_copy_of_the_model_is_looked_at_too(model: Any, hit: Hit) -> None:
    twin = copy.deepcopy(model)
    assert torch.equal(answer(twin, IDS, hit.inputs), answer(model, IDS))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(answer(twin, IDS), torch.cat([IDS, torch.zeros(1, 7).long()], 1))
    with pytest.raises(errors.InvalidInput):
        answer(twin, tokens(TOKENS, seed=1), hit.inputs)


def test_caches_that_were_not_loaded_pass(model: Any, hit: Hit) -> None:
    cache = DynamicCache(config=model.config)
    got = answer(model, IDS, cache_inputs(model, cache))
    assert torch.equal(got, answer(model, IDS))
    static = answer(model, IDS, cache_implementation="static")
    assert torch.equal(static, got)
