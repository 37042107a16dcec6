"""A function that was put over a module's `forward` may read globals of its file, which change:
what they are is part of the model's identity, in every call anew."""

from __future__ import annotations

import copy
import enum
import threading
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, LlamaConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaMLP

from lexico_client import Client, InMemoryTransport
from lexico_client.engines.hf._functions import said_of
from lexico_client.hf import HuggingFaceCache, weights_fingerprint
from lexico_codec.hf_inputs import cache_inputs
from tests.support.coded_models import llama, prompt

IDS = prompt(33)
SCALE: Any = 1.0
SCALES = {"mlp": [1.0]}


def scaled(self: LlamaMLP, x: Tensor) -> Tensor:
    return SCALE * type(self).forward(self, x)


def looked_up(self: LlamaMLP, x: Tensor) -> Tensor:
    return SCALES["mlp"][0] * type(self).forward(self, x)


def _factor() -> Any:
    return SCALE


def through_another(self: LlamaMLP, x: Tensor) -> Tensor:
    return _factor() * type(self).forward(self, x)


def within(self: LlamaMLP, x: Tensor) -> Tensor:
    return (lambda y: SCALE * y)(type(self).forward(self, x))


def attention(*arguments: Any, **others: Any) -> Any:
    output, weights = sdpa_attention_forward(*arguments, **others)
    return SCALE * output, weights


def even(number: int) -> bool:
    return number == 0 or odd(number - 1)


def odd(number: int) -> bool:
    return number != 0 and even(number - 1)


def put_over(forward: Callable[..., Tensor]) -> Any:
    model = llama(attn_implementation="sdpa")
    mlp = model.model.layers[1].mlp
    mlp.forward = MethodType(forward, mlp)
    return model


@pytest.mark.parametrize("forward", [scaled, looked_up, through_another, within])
def test_another_global_is_another_model(
    forward: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = put_over(forward)
    before = weights_fingerprint(model)
    assert weights_fingerprint(put_over(forward)) == before
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "SCALE", 0.5)
        patch.setitem(SCALES, "mlp", [0.5])
        assert weights_fingerprint(model) != before
    assert weights_fingerprint(model) == before


def test_an_attention_function_that_reads_a_global(monkeypatch: pytest.MonkeyPatch) -> None:
    AttentionInterface.register("of_a_global", attention)
    model = llama(attn_implementation="of_a_global")
    before = weights_fingerprint(model)
    monkeypatch.setitem(globals(), "SCALE", 0.5)
    assert weights_fingerprint(model) != before


@torch.inference_mode()
def test_pages_of_another_global_are_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = put_over(scaled)
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path) as client:
        shared = HuggingFaceCache(client, model, codec="raw", page_tokens=8)
        cache: Any = DynamicCache(config=model.config)
        model(IDS, **cache_inputs(model, cache))
        shared.offload(IDS, cache)
        assert shared.load(IDS).tokens == 32
        monkeypatch.setitem(globals(), "SCALE", 0.5)
        assert shared.load(IDS).tokens == 0


def test_a_program_of_its_own() -> None:
    """As in a notebook: two processes have the same code, and each its globals."""

    def made(**others: Any) -> Any:
        space: dict[str, Any] = {"__name__": "__main__", "torch": torch, **others}
        exec("def forward(x):\n    return torch.mul(x, SCALE)\n", space)
        return space["forward"]

    assert said_of(made(SCALE=2.0)) == said_of(made(SCALE=2.0)) != said_of(made(SCALE=3.0))
    assert said_of(made(SCALE=[2, {3}])) == said_of(made(SCALE=[2, {3}]))
    assert said_of(made(SCALE=torch.float16)) != said_of(made(SCALE=torch.bfloat16))
    scale = torch.tensor(2.0)
    one = made(SCALE=scale)
    assert said_of(one) == said_of(one) != said_of(made(SCALE=scale)), "a tensor cannot be said"
    endless: list[Any] = [1]
    endless.append(endless)
    assert said_of(made(SCALE=endless)) != said_of(made(SCALE=[1]))


class Size(enum.Enum):
    SMALL = 0.5
    LARGE = 2.0


Pair = namedtuple("Pair", "x y")

TWO: Any = {
    "numbers of numpy": (np.float32(0.5), np.float32(2.0)),
    "flags of numpy": (np.bool_(False), np.bool_(True)),
    "arrays": (np.array([1.0, 0.5]), np.array([1.0, 2.0])),
    "arrays of other shapes": (np.zeros(4), np.zeros((2, 2))),
    "decimals": (Decimal("0.5"), Decimal(2)),
    "fractions": (Fraction(1, 2), Fraction(2)),
    "members": (Size.SMALL, Size.LARGE),
    "named tuples": (Pair(1, 0.5), Pair(1, 2.0)),
    "ordered": (OrderedDict(a=0.5), OrderedDict(a=2.0)),
    "with a default": (defaultdict(list, a=[0.5]), defaultdict(list, a=[2.0])),
    "queues": (deque([0.5]), deque([2.0])),
    "partial": (partial(torch.mul, 0.5), partial(torch.mul, 2.0)),
    "cached": (lru_cache(even), lru_cache(odd)),
    "functions of numpy": (np.tanh, np.sin),
    "configs": (LlamaConfig(rms_norm_eps=1e-5), LlamaConfig(rms_norm_eps=1e-6)),
    "operators": (torch.ops.aten.relu, torch.ops.aten.tanh),
}


@pytest.mark.parametrize(("one", "other"), TWO.values(), ids=TWO.keys())
def test_numbers_and_collections_of_any_kind(
    one: Any, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by a function that others can import, which counts them by more than their type."""
    said = []
    for value in (one, copy.deepcopy(one), other):
        monkeypatch.setitem(globals(), "SCALE", value)
        said.append(said_of(scaled))
    assert said[0] == said[1] != said[2]
    monkeypatch.setitem(globals(), "SCALE", [other])
    assert said_of(scaled) != said[2]


def test_an_object_counts_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/huggingface.md has it: what its attributes are is not seen."""
    said = []
    for value in (threading.Lock, Any, threading.Event(), threading.Event()):
        monkeypatch.setitem(globals(), "SCALE", value)
        said.append(said_of(scaled))
    assert said[2] == said[3]
    assert len(set(said)) == 3


def test_an_array_that_is_large_cannot_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than hashed in each call."""
    monkeypatch.setitem(globals(), "SCALE", np.zeros(1 << 20))
    assert "scaled" not in said_of(scaled)
    monkeypatch.setitem(globals(), "SCALE", np.array([None, 1], dtype=object))
    assert "scaled" not in said_of(scaled)


def test_a_tensor_that_an_imported_function_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shared within the process alone."""
    before = said_of(scaled)
    monkeypatch.setitem(globals(), "SCALE", torch.tensor(1.0))
    assert "scaled" in before
    assert "scaled" not in said_of(scaled)


def test_functions_that_read_each_other() -> None:
    assert said_of(even) == said_of(even) != said_of(odd)
