"""Sessions of models whose layers do not write in place, as torch.compile has them, or that compute
in another type than they have: the answers of no service, and pages that are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from lexico_client.engines.hf._batch_memory import BatchMemory
from lexico_client.hf import HuggingFaceCache, Session
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.hf_inputs import cache_inputs, cache_keyword
from lexico_proto import errors
from tests.support.answers import IDS, made
from tests.support.sessions import (
    PLAIN,
    STATIC_COUNTS,
    batch_of,
    ids_of,
    outcomes_of,
    sharing,
    warmed,
)

LONG, SHORT, NEW = ids_of(100, 1), ids_of(30, 2), ids_of(41, 3)
BATCH = batch_of([LONG, SHORT, NEW])


def of_forward(model: Any) -> None:
    model.forward = torch.compile(model.forward, backend="eager", dynamic=True)


def of_layers(model: Any) -> None:
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, backend="eager", dynamic=True)


def in_place(model: Any) -> None:
    model.compile(backend="eager", dynamic=True)


@pytest.fixture
def model() -> Any:
    return made("llama")


@pytest.fixture
def shared(model: Any, tmp_path: Path) -> Iterator[HuggingFaceCache]:
    with sharing(model, tmp_path) as shared:
        yield shared


@pytest.mark.parametrize("compile_it", [of_forward, of_layers, in_place])
def test_a_compiled_model(
    model: Any, shared: HuggingFaceCache, compile_it: Callable[[Any], None]
) -> None:
    """Prompts that are behind the others are computed into the memory of the batch, wherever the
    layers put what they make."""
    expected = model.generate(**BATCH, **PLAIN)
    with Session(shared) as session:
        warmed(session, [LONG, SHORT])
        compile_it(model)
        for _ in range(2):
            got = session.generate(**BATCH, **PLAIN)
            assert torch.equal(got.output, expected)
            assert [each.reloaded_tokens for each in got.report.prompts][:2] == [96, 24]
            assert all(outcome.error is None for outcome in got.report.offloads())
        if STATIC_COUNTS:
            static = session.generate(**BATCH, **PLAIN, cache_implementation="static")
            assert torch.equal(static.output, expected)
    fresh = made("llama")
    sequence = torch.tensor([NEW + expected[2, len(LONG) :].tolist()])
    hit = shared.load(sequence)
    with torch.no_grad():
        cache = getattr(fresh(sequence, use_cache=True), cache_keyword(fresh))
    for ours, theirs in zip(hit.cache.layers, cache.layers, strict=True):
        for half in ("keys", "values"):
            if hit.tokens:
                wanted = getattr(theirs, half)[:, :, : hit.tokens]
                torch.testing.assert_close(getattr(ours, half), wanted, atol=1e-4, rtol=1e-4)


def memory_of(model: Any, rows: int = 2, capacity: int = 40) -> BatchMemory:
    geometry = geometry_of(model.config, model.dtype)
    memory = BatchMemory(geometry, model.config, rows, capacity, model.device)
    for part in (*memory.keys, *memory.values):
        part.fill_(float("nan"))
    return memory


@pytest.mark.parametrize("mode", [nullcontext, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(("pad", "held"), [(0, 0), (5, 0), (5, 9), (0, 16)])
@torch.no_grad()
def test_whatever_layers_do_the_memory_has_it(
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
    mode: Callable[[], AbstractContextManager[None]],
    traced: bool,
    pad: int,
    held: int,
) -> None:
    ids, memory = torch.tensor([ids_of(30, 4)]), memory_of(model)
    whole: Any = getattr(model(ids, use_cache=True), cache_keyword(model))
    for layer, keys, values in zip(whole.layers, memory.keys, memory.values, strict=True):
        keys[1, :, pad : pad + held] = layer.keys[0, :, :held]
        values[1, :, pad : pad + held] = layer.values[0, :, :held]
    cache = memory.row(1, pad, held)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: traced)
    with mode():
        model(ids[:, held:], **cache_inputs(model, cache), use_cache=True)
    memory.keep(cache, 1, pad, 30)
    for layer, keys, values in zip(whole.layers, memory.keys, memory.values, strict=True):
        for wanted, got in ((layer.keys, keys), (layer.values, values)):
            torch.testing.assert_close(got[1, :, pad : pad + 30], wanted[0], atol=1e-4, rtol=1e-4)
            assert got[0].isnan().all(), "the other row is left alone"
            assert got[1, :, :pad].isnan().all()
            assert got[1, :, pad + 30 :].isnan().all()


@torch.no_grad()
def test_keys_of_another_type_or_number_are_not_taken(model: Any) -> None:
    memory = memory_of(model)
    cache = memory.row(0, 0, 0)
    model(IDS[:, :8], **cache_inputs(model, cache), use_cache=True)
    with pytest.raises(errors.ShapeMismatch, match="the model made keys"):
        memory.keep(cache, 0, 0, 9)
    layers: list[Any] = cache.layers
    layers[0].keys = layers[0].keys.bfloat16()
    with pytest.raises(errors.ShapeMismatch, match="bfloat16"):
        memory.keep(cache, 0, 0, 8)


def test_a_prompt_that_cannot_be_brought_up_is_computed_without_a_service(
    model: Any, shared: HuggingFaceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*given: Any) -> None:
        raise errors.ShapeMismatch("the model made something else")

    expected = model.generate(**BATCH, **PLAIN)
    with Session(shared) as session:
        warmed(session, [LONG, SHORT])
        monkeypatch.setattr(BatchMemory, "keep", other)
        got = session.generate(**BATCH, **PLAIN)
        assert torch.equal(got.output, expected)
        assert [type(each.reason) for each in got.report.prompts] == [errors.ShapeMismatch] * 3
        assert [type(each.error) for each in got.report.offloads()] == [errors.ShapeMismatch] * 3


@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}], ids=str)
def test_autocast_to_another_type_shares_nothing(
    model: Any, shared: HuggingFaceCache, settings: dict[str, Any]
) -> None:
    if settings and not STATIC_COUNTS:
        pytest.skip("static caches of this transformers are refused")
    with Session(shared) as session:
        warmed(session, [LONG])
        with torch.autocast("cpu", torch.bfloat16):
            expected = model.generate(**BATCH, **PLAIN | settings)
            got = session.generate(**BATCH, **PLAIN | settings)
        assert torch.equal(got.output, expected)
        for prompt, outcome in zip(got.report.prompts, got.report.offloads(), strict=True):
            assert (prompt.reloaded_tokens, prompt.reason) == (0, outcome.error)
            assert "torch.autocast makes keys and values of torch.bfloat16" in str(prompt.reason)
        assert session.generate(torch.tensor([SHORT]), **PLAIN).report.reloaded_tokens == 0


def test_autocast_to_the_models_own_type(tmp_path: Path) -> None:
    model = made("llama").bfloat16()
    with sharing(model, tmp_path) as shared, Session(shared) as session:
        with torch.autocast("cpu", torch.bfloat16):
            warmed(session, [LONG])
            got = session.generate(torch.tensor([LONG]), **PLAIN)
        assert got.report.reloaded_tokens == 96
        assert outcomes_of(got.report)[0][:12] == "p" * 12


def test_autocast_by_hand(model: Any, shared: HuggingFaceCache) -> None:
    """What it makes after a miss is not offloaded; behind a hit it is refused."""
    miss = shared.load(IDS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(IDS, **miss.inputs)
    with pytest.raises(errors.InvalidInput, match="autocast to another dtype"):
        shared.offload(IDS, miss.cache)
    grown = shared.load(IDS)
    with torch.no_grad():
        model(IDS[:, :20], **grown.inputs)
        with torch.autocast("cpu", torch.bfloat16):
            model(IDS[:, 20:], **cache_inputs(model, grown.cache))
    with pytest.raises(errors.InvalidInput, match="from position 20 on"):
        shared.offload(IDS, grown.cache)
    assert shared.offload(IDS[:, :20], grown.cache).tokens == 16
    hit = shared.load(IDS)
    assert hit.tokens == 16
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        with pytest.raises(errors.Unsupported, match="leave autocast out"):
            model.generate(IDS, **hit.inputs, **PLAIN)
        with pytest.raises(errors.Unsupported, match="leave autocast out"):
            model(IDS[:, 16:], **hit.inputs)
    assert torch.equal(model.generate(IDS, **hit.inputs, **PLAIN), model.generate(IDS, **PLAIN))
