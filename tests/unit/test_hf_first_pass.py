"""The first forward pass after a reload copies nothing of the prefix: operator by operator, and
beside a plain `DynamicCache`, which copies all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from lexico_client.hf import HuggingFaceCache, Session
from lexico_codec.hf_inputs import cache_inputs
from tests.support.answers import SHAPE
from tests.support.sessions import PLAIN, STATIC_COUNTS, ids_of, sharing, warmed

TOKENS, LOADED, HEADS, DIM, HALVES = 204, 200, 4, 16, 4
PREFIX = HALVES * LOADED * HEADS * DIM * 4
"""Bytes: keys and values of two layers."""
IDS = torch.tensor([ids_of(TOKENS, 1)])
ONE = PLAIN | {"max_new_tokens": 1}


class Copies(TorchDispatchMode):
    """Bytes that operators write of tensors that are as large as half a layer's keys, or larger,
    and have their head_dim."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        out = func(*args, **given)
        name = func.overloadpacket.__name__
        written = {"copy_": 0, "index_copy_": 3}.get(name)
        made = [args[written]] if written is not None else self._new(out, (args, given))
        for tensor in made:
            large = tensor.nbytes >= PREFIX // HALVES // 2
            if large and tensor.shape[-1] == DIM and not name.startswith(("empty", "zeros")):
                self.count += tensor.nbytes
        return out

    @staticmethod
    def _new(out: Any, given: Any) -> list[Tensor]:
        """Outputs that are no views of what an operator was given."""
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        old = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        leaves = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        return [leaf for leaf in leaves if leaf.untyped_storage().data_ptr() not in old]


def copied(work: Any) -> int:
    with torch.no_grad(), Copies() as copies:
        work()
    return copies.count


@pytest.fixture(scope="module")
def model() -> Any:
    """One whose query heads have a KV head each: others repeat these in every pass."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).train(False)


@pytest.fixture
def shared(model: Any, tmp_path: Path) -> Iterator[HuggingFaceCache]:
    with sharing(model, tmp_path) as shared, Session(shared) as session:
        warmed(session, IDS.tolist())
        yield shared


def test_a_plain_cache_is_copied_whole(model: Any) -> None:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(IDS[:, :LOADED], **cache_inputs(model, cache))
    assert copied(lambda: model(IDS[:, LOADED:], **cache_inputs(model, cache))) >= PREFIX


def test_by_hand(model: Any, shared: HuggingFaceCache) -> None:
    hit = shared.load(IDS)
    assert hit.tokens == LOADED
    assert copied(lambda: model(IDS[:, LOADED:], **hit.inputs)) == 0
    again = shared.load(IDS)
    assert copied(lambda: model.generate(IDS, **again.inputs, **PLAIN)) == 0


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, 0),
        ({"max_new_tokens": 9}, 0),
        ({"cache_implementation": "static"}, 0),
        ({"cache_implementation": "static", "max_new_tokens": 9}, 0),
        ({"do_sample": True, "num_return_sequences": 3}, 3),
        ({"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 9}, 3),
    ],
    ids=str,
)
def test_sessions(shared: HuggingFaceCache, settings: dict[str, Any], rows: int) -> None:
    """Several answers to a prompt take a copy each, and no further one."""
    if "cache_implementation" in settings and not STATIC_COUNTS:
        pytest.skip("static caches of this transformers are refused")
    reports: list[Any] = []
    with Session(shared) as session:

        def answer() -> None:
            reports.append(session.generate(IDS, **ONE | settings, offload=False).report)

        assert copied(answer) == rows * PREFIX
    assert reports[0].reloaded_tokens == LOADED


def test_beams_by_hand(model: Any, shared: HuggingFaceCache) -> None:
    """A copy for each, and one for the order of the first step."""
    hit = shared.load(IDS)
    whole = PREFIX // LOADED * TOKENS
    beams = copied(lambda: model.generate(IDS, **hit.inputs, **ONE, num_beams=3))
    assert beams == 3 * PREFIX + 3 * whole
