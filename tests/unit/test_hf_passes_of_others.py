"""A cache of a miss grows by the model that it was loaded for, or is not offloaded as that model's:
whoever loads it then has keys and values of another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lexico_client import Client, InMemoryTransport
from lexico_client.engines.hf._identity import ModelIdentity
from lexico_client.hf import HuggingFaceCache
from lexico_proto.errors import InvalidInput
from tests.support.coded_models import prompt

peft = pytest.importorskip("peft")
adapters = pytest.importorskip("tests.unit.test_hf_adapters")
pytestmark = adapters.pytestmark
TOKENS = 48

Switch = Callable[[Any], AbstractContextManager[None]]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path) as client:
        yield client


@contextmanager
def disabled(model: Any) -> Iterator[None]:
    with model.disable_adapter():
        yield


@contextmanager
def another(model: Any) -> Iterator[None]:
    model.set_adapter("blue")
    yield
    model.set_adapter("red")


@contextmanager
def averaged(model: Any) -> Iterator[None]:
    """As weights of a moving average are put in for a while."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    yield
    model.load_state_dict(kept)


def _whole(model: Any, ids: Tensor, inputs: dict[str, Any], switch: Switch) -> None:
    with switch(model):
        model(ids, **inputs)


def _generated(model: Any, ids: Tensor, inputs: dict[str, Any], switch: Switch) -> None:
    with switch(model):
        model.generate(ids, max_new_tokens=2, do_sample=False, **inputs)


def _half(model: Any, ids: Tensor, inputs: dict[str, Any], switch: Switch) -> None:
    model(ids[:, : TOKENS // 2], **inputs)
    with switch(model):
        model(ids[:, TOKENS // 2 :], **inputs)


def _one_token(model: Any, ids: Tensor, inputs: dict[str, Any], switch: Switch) -> None:
    model(ids[:, : TOKENS // 2], **inputs)
    with switch(model):
        model(ids[:, TOKENS // 2 : TOKENS // 2 + 1], **inputs)
    model(ids[:, TOKENS // 2 + 1 :], **inputs)


@pytest.mark.parametrize("switch", [disabled, another, averaged])
@pytest.mark.parametrize("passes", [_whole, _generated, _half, _one_token])
@torch.no_grad()
def test_what_another_model_computed_is_not_offloaded(
    client: Client, passes: Callable[..., None], switch: Switch
) -> None:
    model = adapters.adapted()
    shared = HuggingFaceCache(client, model, codec="raw", page_tokens=8)
    ids = prompt(TOKENS)
    hit = shared.load(ids)
    assert hit.tokens == 0
    inputs = hit.inputs
    passes(model, ids, inputs, switch)
    with pytest.raises(InvalidInput, match="another adapter"):
        shared.offload(ids, hit.cache)
    assert shared.load(ids).tokens == 0


@pytest.mark.parametrize("switch", [disabled, another, averaged])
@torch.no_grad()
def test_between_passes_a_model_may_be_another_one(client: Client, switch: Switch) -> None:
    model = adapters.adapted()
    shared = HuggingFaceCache(client, model, codec="raw", page_tokens=8)
    ids = prompt(TOKENS)
    hit = shared.load(ids)
    inputs = hit.inputs
    model(ids[:, : TOKENS // 2], **inputs)
    with switch(model):
        model(ids)
    model(ids[:, TOKENS // 2 : TOKENS // 2 + 1], **inputs)
    with switch(model):
        model(ids)
    model(ids[:, TOKENS // 2 + 1 :], **inputs)
    assert shared.offload(ids, hit.cache).pages
    assert shared.load(ids).tokens > 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The times that the model's identity is asked for."""
    times = list[object]()
    weights_of = ModelIdentity.weights_of

    def counted(self: ModelIdentity, module: Any) -> bytes:
        times.append(module)
        return weights_of(self, module)

    monkeypatch.setattr(ModelIdentity, "weights_of", counted)
    return times


def _shared(client: Client, model: Any, ids: Tensor) -> HuggingFaceCache:
    """Has the first 40 tokens in the service."""
    shared, first = HuggingFaceCache(client, model, codec="raw", page_tokens=8), ids[:, :40]
    hit = shared.load(first)
    model(first, **hit.inputs)
    shared.offload(first, hit.cache)
    return shared


@torch.no_grad()
def test_the_first_pass_after_a_hit_asks_once(client: Client, asked: list[object]) -> None:
    model, ids = adapters.adapted(), prompt(TOKENS)
    hit = _shared(client, model, ids).load(ids)
    assert hit.tokens == 40
    inputs = hit.inputs
    asked.clear()
    model(ids[:, 40:44], **inputs)
    assert len(asked) == 1
    model(ids[:, 44:45], **inputs)
    assert len(asked) == 1, "of a few tokens it is asked whether anything changed"


@pytest.mark.parametrize("switch", [disabled, another, averaged])
@torch.no_grad()
def test_a_hit_that_meets_another_model_is_refused(client: Client, switch: Switch) -> None:
    model, ids = adapters.adapted(), prompt(TOKENS)
    hit = _shared(client, model, ids).load(ids)
    inputs = hit.inputs
    with switch(model), pytest.raises(InvalidInput, match="another adapter"):
        model(ids[:, 40:], **inputs)


@pytest.mark.parametrize("switch", [disabled, another, averaged])
@torch.no_grad()
def test_after_the_first_pass_of_a_hit_the_model_is_looked_at(
    client: Client, switch: Switch
) -> None:
    """What that pass noted is of the model that it was checked with."""
    model, ids = adapters.adapted(), prompt(TOKENS)
    shared = _shared(client, model, ids)
    hit = shared.load(ids)
    inputs = hit.inputs
    model(ids[:, 40:44], **inputs)
    with switch(model):
        model(ids[:, 44:45], **inputs)
    model(ids[:, 45:], **inputs)
    with pytest.raises(InvalidInput, match="another adapter"):
        shared.offload(ids, hit.cache)
    assert shared.offload(ids[:, :44], hit.cache).pages


@torch.no_grad()
def test_a_model_that_changes_while_it_is_asked(
    client: Client, asked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread: the look comes before the question, so that the next pass sees it."""
    model, ids = adapters.adapted(), prompt(TOKENS)
    shared = _shared(client, model, ids)
    hit = shared.load(ids)
    inputs = hit.inputs
    weights_of = ModelIdentity.weights_of

    def changing(self: ModelIdentity, module: Any) -> bytes:
        answer = weights_of(self, module)
        next(model.parameters()).mul_(1.2)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(ModelIdentity, "weights_of", changing)
        model(ids[:, 40:44], **inputs)
    asked.clear()
    model(ids[:, 44:45], **inputs)
    assert asked
    with pytest.raises(InvalidInput):
        shared.offload(ids, hit.cache)
