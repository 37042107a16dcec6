"""A real model in a session: batches, turns and strings that stop give the tokens of no service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lexico_client import Client, InMemoryTransport
from lexico_client.hf import HuggingFaceCache, Session
from lexico_lab.models import load_model
from tests.support.client_fixtures import PATIENT
from tests.support.sessions import STATIC_COUNTS, batch_of

PLAIN: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
TEXT = (
    "The lighthouse keeper wrote in his log every evening, and on the last page he noted that the "
    "sea had been calm for nine days. He had three lamps, one of which he never lit, and a boat "
    "that leaked."
)
QUESTIONS = (
    "How many lamps had he in the year before that, and which of them did he light?",
    "Why?",
)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return load_model("smollm2")


@pytest.fixture(scope="module")
def shared(smollm2: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HuggingFaceCache]:
    folder = tmp_path_factory.mktemp("dictionaries")
    with Client(transport=InMemoryTransport(), dictionaries_dir=folder, timeouts=PATIENT) as client:
        yield HuggingFaceCache(client, smollm2.model, codec="lossless", page_tokens=16)


@torch.inference_mode()
def test_a_batch_with_different_hits(smollm2: Any, shared: HuggingFaceCache) -> None:
    model, tokenizer = smollm2.model, smollm2.tokenizer
    texts = (f"{TEXT} {QUESTIONS[0]}", f"{TEXT} {QUESTIONS[1]}", "def merge(left, right):")
    rows = [tokenizer(text).input_ids for text in texts]
    batch = batch_of(rows)
    expected = model.generate(**batch, **PLAIN)
    with Session(shared) as session:
        session.generate(torch.tensor(rows[:1]), **PLAIN).report.offloads()
        got = session.generate(**batch, **PLAIN)
        assert torch.equal(got.output, expected)
        first, second, third = (each.reloaded_tokens for each in got.report.prompts)
        assert (first, third) == (shared.spec.reloadable_tokens(len(rows[0])), 0)
        assert 32 <= second < first
        if STATIC_COUNTS:
            static = session.generate(**batch, **PLAIN, cache_implementation="static")
            assert torch.equal(static.output, expected)


@torch.inference_mode()
def test_turns_of_a_conversation(smollm2: Any, shared: HuggingFaceCache) -> None:
    """Each turn goes on from the answer before it, on another node than that was made on."""
    model, tokenizer = smollm2.model, smollm2.tokenizer
    messages: list[dict[str, str]] = []
    nodes = [Session(shared, tokenizer=tokenizer) for _ in range(2)]
    familiar = 0
    for turn, question in enumerate((f"{TEXT} {QUESTIONS[0]}", QUESTIONS[1])):
        messages.append({"role": "user", "content": question})
        got = nodes[turn % 2].generate(messages=messages, **PLAIN)
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        assert torch.equal(got.output, model.generate(**ids, **PLAIN))
        (prompt,) = got.report.prompts
        assert prompt.reloaded_tokens == familiar // 16 * 16
        (outcome,) = got.report.offloads()
        assert outcome.report is not None
        familiar = outcome.report.tokens
        answer: Any = tokenizer.decode(got.answers[0], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer})
    for node in nodes:
        assert node.close()


@torch.inference_mode()
def test_strings_that_stop_and_a_cache_that_has_room(
    smollm2: Any, shared: HuggingFaceCache
) -> None:
    model, tokenizer = smollm2.model, smollm2.tokenizer
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    settings = PLAIN | {"stop_strings": ["."], "max_new_tokens": 9}
    with Session(shared, tokenizer=tokenizer) as session:
        expected = model.generate(ids, **settings, tokenizer=tokenizer)
        for _ in range(2):
            got = session.generate(ids, **settings)
            assert torch.equal(got.output, expected)
            got.report.offloads()
    hit, other = shared.load(ids), shared.load(ids, room_tokens=0)
    layers: list[Any] = hit.cache.layers
    place = layers[0].keys.data_ptr()
    rest = ids[:, hit.tokens :]
    logits = [model(rest, **each.inputs).logits for each in (hit, other)]
    assert layers[0].keys.data_ptr() == place
    assert torch.equal(logits[0], logits[1])
