"""Everything that people do with a cache of codes: one sequence, one use, the same checks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lexico_client import Client, InMemoryTransport
from lexico_codec.hf_inputs import cache_inputs
from lexico_proto import errors
from tests.support.answers import IDS, TOKENS, WAYS, answer, tokens
from tests.support.client_fixtures import PATIENT
from tests.support.coded_models import llama as coded_llama
from tests.support.coded_models import offloaded as offloaded_codes


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(
        transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        yield client


def test_used_in_every_way(client: Client) -> None:
    model = coded_llama()
    shared = offloaded_codes(client, model, IDS)

    def load() -> Any:
        return shared.load_codes(IDS)

    hit = load()
    expected = answer(model, IDS, shared.load(IDS).inputs)
    fork = copy.deepcopy(hit.cache)
    assert torch.equal(answer(model, IDS, hit.inputs), expected)
    with pytest.raises(errors.Unsupported, match="deepcopy"):
        hit.inputs  # noqa: B018
    assert torch.equal(answer(model, IDS, cache_inputs(model, fork)), expected)
    with pytest.raises(errors.InvalidInput, match="does not begin"):
        answer(model, tokens(TOKENS, seed=1), load().inputs)
    with pytest.raises(errors.InvalidInput, match=r"hit.tokens:\]"):
        model(IDS, **load().inputs)
    for way in ("beams", "several answers"):
        with pytest.raises(errors.Unsupported, match=r"load\(\)"):
            answer(model, IDS, load().inputs, **WAYS[way])
    with pytest.raises(errors.Unsupported, match="crop by"):
        answer(model, IDS[:, :9], load().inputs)
    for refused in ("static", "quantized", "offloaded"):
        with pytest.raises(errors.Unsupported, match="leave"):
            answer(model, IDS, load().inputs, cache_implementation=refused)
    with pytest.raises(errors.Unsupported, match=r"load\(\)"):
        answer(model, IDS, load().inputs, prompt_lookup_num_tokens=3)
