"""A real model through real servers: codec raw gives the same bits and the same tokens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from lexico_client import Client
from lexico_client.hf import HuggingFaceCache, weights_fingerprint
from lexico_codec.hf_inputs import cache_inputs
from lexico_codec.spec import DEFAULT_RECENT_TOKENS
from lexico_lab.models import load_model
from lexico_proto.errors import DictionaryMismatch
from tests.support.client_fixtures import PATIENT
from tests.support.coded_models import layers_of
from tests.support.services import Services, running_services
from tests.support.waiting import PATIENCE_S

PAGE_TOKENS, NEW_TOKENS = 16, 12

PROMPTS = (
    "The lighthouse keeper wrote in his log every evening, and on the last page he noted that",
    "def merge(left, right):\n    '''Merges two sorted lists into one sorted list.'''\n    result",
    "Ingredients: two eggs, a cup of flour, half a cup of milk, a pinch of salt. First, you",
    "In 1969 the first message was sent between two computers of the network that later became",
    "Dear Ms Novak, thank you for your letter of the third of March about the broken kettle. We",
    "The three laws of thermodynamics can be put like this: you cannot win, you cannot break even,",
    "Q: A train leaves at nine and travels 120 kilometres in two hours. What is its speed?\nA: It",
    "Once there was a small robot who had never seen the sea, and who asked every bird that came",
)


@contextmanager
def background_services() -> Iterator[Services]:
    """Servers on a loop of their own thread, so that the sync client can be used here."""
    loop, ready, done = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    found: list[Services] = []

    async def run() -> None:
        async with running_services() as services:
            found.append(services)
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert ready.wait(PATIENCE_S)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(PATIENCE_S)
        loop.close()


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return load_model("smollm2")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with (
        background_services() as services,
        Client(
            offload=services.offload_address,
            reload=services.reload_address,
            dictionaries_dir=tmp_path,
            timeouts=PATIENT,
        ) as made,
    ):
        yield made


def generate(model: Any, ids: torch.Tensor, cache: DynamicCache | None) -> list[int]:
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        **cache_inputs(model, cache),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    tokens: list[int] = made[0].tolist()
    return tokens


@torch.inference_mode()
def test_raw_is_bit_identical_and_generates_the_same_tokens(client: Client, smollm2: Any) -> None:
    model, tokenizer = smollm2.model, smollm2.tokenizer
    weights = weights_fingerprint(model)
    here = HuggingFaceCache(client, model, codec="raw", page_tokens=PAGE_TOKENS, weights=weights)
    there = HuggingFaceCache(client, model, codec="raw", page_tokens=PAGE_TOKENS, weights=weights)
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        cache = DynamicCache(config=model.config)
        # The pages' own tokens first: a prefill of other lengths would round differently.
        shared = (ids.shape[1] - 1) // PAGE_TOKENS * PAGE_TOKENS
        model(ids[:, :shared], **cache_inputs(model, cache))
        here.offload(ids, cache)
        hit = there.load(ids)
        assert (hit.tokens, hit.reason) == (shared, None)
        for mine, other in zip(layers_of(cache), layers_of(hit.cache), strict=True):
            assert torch.equal(mine.keys, other.keys)
            assert torch.equal(mine.values, other.values)
        expected = generate(model, ids, None)
        assert generate(model, ids, hit.cache) == expected, prompt


@torch.inference_mode()
@pytest.mark.parametrize("settings", [{}, {"codec": "paper"}], ids=["default", "paper"])
def test_presets_reload_close_to_what_was_there(
    client: Client, smollm2: Any, settings: dict[str, Any]
) -> None:
    model, tokenizer = smollm2.model, smollm2.tokenizer
    cache = HuggingFaceCache(client, model, page_tokens=PAGE_TOKENS, **settings)
    ids = tokenizer(" ".join(PROMPTS), return_tensors="pt").input_ids
    prefilled: Any = DynamicCache(config=model.config)
    exact = model(ids, **cache_inputs(model, prefilled))
    # The shipped set is not registered with these servers: the client registers it by itself.
    report = cache.offload(ids, prefilled)
    assert report.bytes_stored < report.bytes_sent / 4
    hit = cache.load(ids)
    assert hit.tokens == ids.shape[1] - DEFAULT_RECENT_TOKENS > 64
    for mine, other in zip(prefilled.layers, layers_of(hit.cache), strict=True):
        for a, b in ((mine.keys, other.keys), (mine.values, other.values)):
            a = a[:, :, : hit.tokens]
            assert torch.equal(a[:, :, :4], b[:, :, :4])  # sinks
            assert float((a - b).norm() / a.norm()) < (0.6 if settings else 1.0)
    following = model(ids[:, hit.tokens :], **cache_inputs(model, hit.cache)).logits[0, -1]
    reference = exact.logits[0, -1].log_softmax(-1)
    kl = (reference.exp() * (reference - following.log_softmax(-1))).sum()
    assert float(kl) < 0.5


@torch.inference_mode()
def test_a_set_for_other_weights_is_refused(client: Client, smollm2: Any) -> None:
    """The same model but for its scales: key channels that the built-in set never saw large."""
    model, tokenizer = smollm2.model, smollm2.tokenizer
    ids = tokenizer(" ".join(PROMPTS), return_tensors="pt").input_ids
    reference = model(ids).logits

    def scale(factor: float) -> None:
        for layer in model.model.layers:
            for projection, by in (("k_proj", factor), ("q_proj", 1 / factor)):
                weight = getattr(layer.self_attn, projection).weight.view(-1, 64, 576)
                weight[:, [3, 35]] *= by  # a RoPE pair of every head

    scale(64.0)
    try:
        prefilled = DynamicCache(config=model.config)
        exact = model(ids, **cache_inputs(model, prefilled))
        assert torch.allclose(exact.logits, reference, atol=1e-3), (
            "the model's function is the same"
        )
        cache = HuggingFaceCache(client, model, page_tokens=PAGE_TOKENS, weights=bytes(32))
        with pytest.raises(DictionaryMismatch, match="train one for these weights"):
            cache.offload(ids, prefilled)
        assert cache.load(ids).tokens == 0
    finally:
        scale(1 / 64)
