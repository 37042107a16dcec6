"""Token ids as callers have them, and the other arguments of the adapter: of the right kind, or a
clear error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from lexico_client import Client, InMemoryTransport
from lexico_client.engines.hf._token_ids import flat_ids
from lexico_client.hf import HuggingFaceCache
from lexico_codec.hf_inputs import cache_inputs
from lexico_lab.evaluation.settings import Split
from lexico_proto.errors import ConfigurationError, InvalidInput, ShapeMismatch, TokenCountMismatch
from tests.support.coded_models import llama, prompt

IDS = prompt(33)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path) as client:
        yield client


WAYS: dict[str, Any] = {
    "tensor": IDS,
    "flat tensor": IDS[0],
    "short integers": IDS.to(torch.uint8),
    "list": IDS[0].tolist(),
    "nested list": IDS.tolist(),
    "nested tuples": tuple(map(tuple, IDS.tolist())),
    "array": IDS.numpy(),
    "flat array": IDS[0].numpy(),
    "list of arrays": [IDS[0].numpy()],
    "list of tensors": list(IDS[0]),
}


@torch.inference_mode()
def test_one_prompt_in_every_way(client: Client) -> None:
    model = llama(attn_implementation="sdpa")
    shared = HuggingFaceCache(client, model, codec="raw", page_tokens=8)
    cache = DynamicCache(config=model.config)
    model(IDS, **cache_inputs(model, cache))
    assert shared.offload(WAYS["nested list"], cache).tokens == 32
    for way, given in WAYS.items():
        assert flat_ids(given) == IDS[0].tolist(), way
        assert shared.load(given).tokens == 32, way
        assert set(shared.offload(given, cache).pages) == {"present"}, way


@pytest.mark.parametrize(
    "batch",
    [IDS.repeat(2, 1), IDS.repeat(2, 1).tolist(), IDS.repeat(2, 1).numpy(), [[1, 2], [3]]],
    ids=["tensor", "lists", "array", "of two lengths"],
)
def test_a_batch_names_the_way(client: Client, batch: Any) -> None:
    model = llama(attn_implementation="sdpa")
    shared = HuggingFaceCache(client, model, codec="raw", page_tokens=8)
    for call in (
        lambda: shared.load(batch),
        lambda: shared.offload(batch, DynamicCache(config=model.config)),
        lambda: shared.saved(batch, DynamicCache(config=model.config)),
    ):
        with pytest.raises(ShapeMismatch, match="Session"):
            call()


@pytest.mark.parametrize(
    "ids",
    [
        [1.0, 2.0],
        [True] * 9,
        IDS.float(),
        IDS.bool(),
        IDS[None],
        "abc",
        None,
        5,
        {"input_ids": [1]},
        [[1], None],
        [2**70],
    ],
)
def test_what_is_no_ids(ids: Any) -> None:
    with pytest.raises(ShapeMismatch, match=r"integers, \[1, tokens\]"):
        flat_ids(ids)


@pytest.mark.parametrize("ids", [[-1], [2**32], torch.tensor([[-5]]), np.array([2**63], "u8")])
def test_integers_that_are_no_token_ids(ids: Any) -> None:
    with pytest.raises(TokenCountMismatch, match=r"0\.\.2\^32-1"):
        flat_ids(ids)


def test_no_ids_at_all() -> None:
    made: list[Any] = [[], [[]], (), torch.empty(1, 0).long(), np.empty((1, 0))]
    for nothing in made:
        assert flat_ids(nothing) == []


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "lora that is a number": ({"lora": 5}, "lora"),
    "lora that is no text": ({"lora": "\ud800"}, "lora"),
    "salt that is no text": ({"salt": "\ud800"}, "salt"),
    "weights that are text": ({"weights": "a" * 32}, "weights"),
    "weights that are short": ({"weights": b"x"}, "weights"),
    "part of a token": ({"page_tokens": 1.5}, "page_tokens"),
    "a truth": ({"page_tokens": True}, "page_tokens"),
    "part of a recent token": ({"recent_tokens": 1.5}, "recent_tokens"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_arguments_that_cannot_be_used(client: Client, name: str) -> None:
    given, named = UNUSABLE[name]
    arguments: dict[str, Any] = {"codec": "raw", **given}
    with pytest.raises((InvalidInput, ConfigurationError), match=named):
        HuggingFaceCache(client, llama(attn_implementation="sdpa"), **arguments)


@pytest.mark.parametrize("value", [64.5, True, "64"])
def test_numbers_of_an_evaluation(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"page-tokens=.*an integer is needed"):
        Split(page_tokens=value)
