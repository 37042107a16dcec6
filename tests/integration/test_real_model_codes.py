"""A real model that attends over codes says what it says over their reconstructions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from lexico_client import Client, InMemoryTransport
from lexico_client.hf import HuggingFaceCache
from lexico_codec.hf_inputs import cache_inputs
from lexico_lab.models import load_model
from tests.support.client_fixtures import PATIENT
from tests.support.coded_models import layers_of

PAGE_TOKENS, NEW_TOKENS = 32, 20

PROMPT = (
    "The lighthouse keeper wrote in his log every evening, and on the last page he noted that the "
    "sea had been calm for nine days. He had three lamps, one of which he never lit, and a boat "
    "that leaked. Once a month a ship brought him oil, flour, letters and the newspapers of four "
    "weeks, which he read one a day, in order, as if he did not know how they went on. When the "
    "young clerk of the harbour office asked him what he would do if all three lamps failed in "
    "the same night, the keeper answered without looking up from his"
)


@dataclass
class Offloaded:
    """A prompt whose pages are stored."""

    model: Any
    shared: HuggingFaceCache
    ids: Tensor
    logits: Tensor
    """Of the unbroken run, `[tokens, vocabulary]`."""


@pytest.fixture(scope="module")
def offloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offloaded]:
    loaded, folder = load_model("smollm2"), tmp_path_factory.mktemp("dictionaries")
    model: Any = loaded.model
    model.set_attn_implementation("lexico_codes")
    ids = loaded.tokenizer(PROMPT, return_tensors="pt").input_ids
    exact = DynamicCache(config=model.config)
    with Client(transport=InMemoryTransport(), dictionaries_dir=folder, timeouts=PATIENT) as client:
        shared = HuggingFaceCache(
            client, model, codec="paper", page_tokens=PAGE_TOKENS, recent_tokens=1
        )
        with torch.inference_mode():
            logits = model(ids, **cache_inputs(model, exact)).logits[0]
            shared.offload(ids, exact)
        yield Offloaded(model, shared, ids, logits)


@torch.inference_mode()
def test_codes_generate_the_tokens_of_the_dense_reload(offloaded: Offloaded) -> None:
    model, ids = offloaded.model, offloaded.ids
    codes, dense = offloaded.shared.load_codes(ids), offloaded.shared.load(ids)
    assert (codes.tokens, codes.reason) == (dense.tokens, None)
    assert codes.tokens == (ids.shape[1] - 1) // PAGE_TOKENS * PAGE_TOKENS == 96
    memory = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers_of(dense.cache))
    assert codes.cache.held_bytes < memory / 3  # fixed parts weigh here
    answers = [
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            **cache_inputs(model, hit.cache),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        for hit in (codes, dense)
    ]
    assert torch.equal(answers[0].sequences, answers[1].sequences)
    ours, theirs = (torch.stack(answer.logits) for answer in answers)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)


@torch.inference_mode()
def test_a_buffer_that_overflows_costs_little(offloaded: Offloaded) -> None:
    """The tail is coded as it leaves the buffer: what follows is still close to exact."""
    model, ids, first = offloaded.model, offloaded.ids, 2 * PAGE_TOKENS
    prefix = ids[:, : first + 1]
    cache = offloaded.shared.load_codes(prefix, buffer_tokens=16, window_tokens=8).cache
    assert cache.get_seq_length() == first
    model(ids[:, first:-8], **cache_inputs(model, cache))
    last = ids[:, -8:].split(1, 1)
    following = torch.cat([model(token, **cache_inputs(model, cache)).logits[0] for token in last])
    assert cache.coded_tokens >= ids.shape[1] - 4 - 16
    reference = offloaded.logits[-8:].log_softmax(-1)
    kl = (reference.exp() * (reference - following.log_softmax(-1))).sum(-1).mean()
    assert float(kl) < 0.5
