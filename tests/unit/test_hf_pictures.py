"""What reaches a model beside token ids is told by digests, and offloads are of the right ids."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from lexico_client import Client, InMemoryTransport, input_digests
from lexico_client.hf import HuggingFaceCache
from lexico_codec.hf_inputs import cache_inputs
from lexico_proto.errors import InvalidInput, Unsupported
from tests.support.coded_models import llama, prompt
from tests.unit.test_hf_inputs import crossing, llava, t5

PAGE_TOKENS, PICTURE, FIRST, PATCHES = 8, 60, 9, 4


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path) as client:
        yield client


def picture(seed: int) -> Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def question(tokens: int = 41) -> Tensor:
    ids = prompt(tokens) % PICTURE
    ids[0, FIRST : FIRST + PATCHES] = PICTURE
    return ids


def digests_of(pixels: Tensor, tokens: int = 41) -> Any:
    return input_digests([(FIRST, PATCHES, pixels)], PAGE_TOKENS, tokens)


def shared_of(client: Client, model: Any, **changes: Any) -> HuggingFaceCache:
    arguments = {"codec": "raw", "page_tokens": PAGE_TOKENS, **changes}
    return HuggingFaceCache(client, model, **arguments)


@torch.inference_mode()
def test_another_picture_behind_the_same_words(client: Client) -> None:
    model, ids = llava(), question()
    shared = shared_of(client, model, digests=True)
    red, blue = picture(1), picture(2)
    cache = DynamicCache(config=model.config)
    whole = model(ids, pixel_values=red, **cache_inputs(model, cache)).logits
    shared.offload(ids, cache, inputs=digests_of(red))
    hit = shared.load(ids, inputs=digests_of(red))
    assert hit.tokens == 40
    rest = model(ids[:, 40:], **hit.inputs).logits
    torch.testing.assert_close(rest, whole[:, 40:], atol=1e-5, rtol=1e-5)
    other = shared.load(ids, inputs=digests_of(blue))
    assert other.tokens == 8, "the words before the picture"
    made = model(ids[:, 8:], pixel_values=blue, **other.inputs).logits
    expected = model(ids, pixel_values=blue).logits[:, 8:]
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, whole[:, 8:], atol=1e-3), "pictures do count"
    assert shared.load(ids, inputs=()).tokens == 8


@torch.inference_mode()
def test_a_hit_never_ends_within_a_picture(client: Client) -> None:
    model, ids = llava(), question()
    shared = shared_of(client, model, digests=True)
    cache = DynamicCache(config=model.config)
    model(ids, pixel_values=picture(1), **cache_inputs(model, cache))
    inputs = input_digests([(14, 4, picture(1))], PAGE_TOKENS, 41)
    shared.offload(ids[:, :16], cache, inputs=inputs)
    assert shared.load(ids, inputs=inputs).tokens == 14
    assert shared.load(ids, inputs=list(inputs)).tokens == 16, "digests alone do not know"


def test_the_weights_of_the_eye_count() -> None:
    from lexico_client.hf import weights_fingerprint

    one, other = llava(), llava()
    with torch.no_grad():
        next(iter(other.model.vision_tower.parameters())).add_(0.1)
    assert weights_fingerprint(one) != weights_fingerprint(other)


def test_without_digests_it_is_refused(client: Client) -> None:
    model = llava()
    with pytest.raises(Unsupported, match=r"pixel_values.*digests=True"):
        shared_of(client, model)
    shared = shared_of(client, model, digests=True)
    for call in (
        lambda: shared.load(question()),
        lambda: shared.offload(question(), DynamicCache(config=model.config)),
    ):
        with pytest.raises(InvalidInput, match="give inputs="):
            call()


@pytest.mark.parametrize("make", [t5, crossing], ids=["encoder", "cross-attention"])
def test_encoders_are_refused_with_digests_too(client: Client, make: Any) -> None:
    with pytest.raises(Unsupported, match="encoder"):
        shared_of(client, make(), digests=True)


def filled(model: Any, ids: Tensor) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(ids, **cache_inputs(model, cache))
    return cache


def test_a_soft_prompt_in_place_of_embeddings(client: Client) -> None:
    """Of a model of text: its caller alone knows."""
    model, ids = llama(attn_implementation="sdpa"), prompt(33)
    shared = shared_of(client, model)
    soft = input_digests([(0, 5, torch.ones(5, 96))], PAGE_TOKENS, 33)
    shared.offload(ids, filled(model, ids), inputs=soft)
    assert shared.load(ids, inputs=soft).tokens == 32
    assert shared.load(ids).tokens == 0


def test_ids_of_another_text(client: Client) -> None:
    model, ids, other = llama(attn_implementation="sdpa"), prompt(33), prompt(33, seed=9)
    other[:, :11] = ids[:, :11]
    shared = shared_of(client, model)
    missed = shared.load(ids)
    shared.offload(ids, filled(model, ids))
    hit = shared.load(ids)
    longer = torch.cat([ids, prompt(20, seed=4)], dim=1)
    assert not missed.tokens
    for cache in (hit.cache, copy.deepcopy(hit.cache)):
        with pytest.raises(InvalidInput, match="from position 11 on"):
            shared.offload(other, cache)
        with pytest.raises(InvalidInput, match="from position"):
            shared.offload(other[:, :12], cache)
        shared.offload(other[:, :11], cache)
        shared.offload(longer, cache)
        shared.offload(ids[:, :20], cache)


def test_inputs_of_another_prompt(client: Client) -> None:
    model, ids = llama(attn_implementation="sdpa"), prompt(33)
    shared = shared_of(client, model)
    red, blue = (input_digests([(9, 4, name)], PAGE_TOKENS, 33) for name in ("red", "blue"))
    shared.offload(ids, filled(model, ids), inputs=red)
    hit = shared.load(ids, inputs=red)
    for inputs in (blue, None, ()):
        with pytest.raises(InvalidInput, match="other inputs"):
            shared.offload(ids, hit.cache, inputs=inputs)
    assert set(shared.offload(ids, hit.cache, inputs=red).pages) == {"present"}


def test_a_salt_keeps_pages_apart(client: Client) -> None:
    model, ids = llama(attn_implementation="sdpa"), prompt(33)
    shared = shared_of(client, model, salt="customer 5")
    shared.offload(ids, filled(model, ids))
    assert shared.load(ids).tokens == 32
    assert shared_of(client, model).load(ids).tokens == 0
    assert shared_of(client, model, salt=b"customer 6").load(ids).tokens == 0
