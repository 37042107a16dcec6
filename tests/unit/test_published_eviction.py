"""Eviction: bytes to the last one, true positions, and what each method may keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lexico_codec.hf_inputs import cache_inputs
from lexico_lab.caches import cache_of, forward, states_of
from lexico_lab.published.eviction import (
    FRACTIONS,
    KVZIP_FRACTIONS,
    Eviction,
    evictions,
    pyramid,
    select,
)
from lexico_lab.published.scores import available, score_key, scores_of
from lexico_lab.published.short_caches import continued, shorten
from lexico_lab.published.titles import EVICTIONS

# What kvpress imports warns of its own imports.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LAYERS, HEADS, GROUPS, DIM = 3, 2, 3, 16
PREFIX, NEW = 63, 11
STORED = slice(4, 50)
TOKENS = STORED.stop - STORED.start

needs_kvpress = pytest.mark.skipif(not available(), reason="kvpress is not installed")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=HEADS * GROUPS * DIM,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS * GROUPS,
        num_key_value_heads=HEADS,
        head_dim=DIM,
        max_position_embeddings=256,
        initializer_range=0.2,  # attention that is not flat
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return torch.randint(100, (PREFIX + NEW,), generator=torch.Generator().manual_seed(1)).tolist()


def exact_states(model: Any, ids: list[int]) -> Tensor:
    """Of the prefix."""
    cache = cache_of()
    forward(model, ids[:PREFIX], cache, 1)
    return states_of(cache)


def prefix_states(model: Any, ids: list[int]) -> Tensor:
    """The same in values that float16 holds."""
    return exact_states(model, ids).half().float()


@torch.inference_mode()
def masked(model: Any, ids: list[int], kept: Tensor) -> Tensor:
    """Logits after the whole cache, dropped tokens masked: `kept` is the same in all layers."""
    seen = torch.ones(HEADS, NEW, PREFIX + NEW, dtype=torch.bool)
    seen[:, :, STORED] = kept[0][:, None]
    seen[:, :, PREFIX:] = torch.ones(NEW, NEW, dtype=torch.bool).tril()
    mask = seen.repeat_interleave(GROUPS, dim=0)[None]
    cache = cache_of(prefix_states(model, ids))
    following = torch.tensor([ids[PREFIX:]])
    found: Tensor = model(following, **cache_inputs(model, cache), attention_mask=mask).logits[0]
    return found


def random_kept(*, layers_alike: bool = True) -> Tensor:
    """Heads that keep unlike tokens, and unlike many."""
    generator = torch.Generator().manual_seed(2)
    kept = torch.rand(LAYERS, HEADS, TOKENS, generator=generator) < 0.3
    kept[:, 1, ::2] = False
    return kept[:1].expand(LAYERS, -1, -1) if layers_alike else kept


def selected(model: Any, ids: list[int], *chosen: Eviction) -> list[Tensor]:
    """What each keeps."""
    states = prefix_states(model, ids)
    found = scores_of(model, ids[:PREFIX], states, chosen, STORED, [5, 6, 7])
    return [select(found[score_key(one)], one.method, one.count(STORED)) for one in chosen]


def test_names_differ() -> None:
    made = evictions()
    assert len({one.name for one in made}) == len(made)
    assert len({one.curve for one in made}) == 2 * len(EVICTIONS)


def test_keeping_all_predicts_as_the_whole_cache_does(model: Any, ids: list[int]) -> None:
    states = prefix_states(model, ids)
    kept = shorten(states, torch.ones(LAYERS, HEADS, TOKENS, dtype=torch.bool), STORED)
    whole = forward(model, ids[PREFIX:], cache_of(states), NEW)
    found = continued(model, kept, ids[PREFIX:], PREFIX).log_softmax(-1)
    torch.testing.assert_close(found, whole)


def test_dropped_tokens_are_as_if_masked(model: Any, ids: list[int]) -> None:
    """So what follows stands at its true position, and each head sees its own tokens alone."""
    kept = random_kept()
    short = shorten(prefix_states(model, ids), kept, STORED)
    logits = continued(model, short, ids[PREFIX:], PREFIX)
    torch.testing.assert_close(logits, masked(model, ids, kept))
    everything = masked(model, ids, torch.ones_like(kept))
    assert (logits - everything).abs().max() > 1e-2


def test_layers_may_differ_in_length(model: Any, ids: list[int]) -> None:
    kept = random_kept(layers_alike=False)
    kept[1] = False
    short = shorten(prefix_states(model, ids), kept, STORED)
    outside = PREFIX - TOKENS
    layers: Any = short.cache.layers
    lengths = [layer.keys.shape[2] for layer in layers]
    assert lengths == [outside + int(layer.sum(1).max()) for layer in kept]
    assert [int(seen.sum()) for seen in short.visible] == [
        HEADS * outside + int(layer.sum()) for layer in kept
    ]
    logits = continued(model, short, ids[PREFIX:], PREFIX)
    assert logits.shape == (NEW, 100)
    assert logits.isfinite().all()


def test_the_model_is_left_as_it_was(model: Any, ids: list[int]) -> None:
    former = model.config._attn_implementation
    short = shorten(prefix_states(model, ids), random_kept(), STORED)
    continued(model, short, ids[PREFIX:], PREFIX)
    assert model.config._attn_implementation == former


def test_stored_tokens_are_float16_and_the_tail_exact(model: Any, ids: list[int]) -> None:
    exact = exact_states(model, ids)
    short = shorten(exact, torch.zeros(LAYERS, HEADS, TOKENS, dtype=torch.bool), STORED)
    left = states_of(short.cache)
    sinks, tail = left[:, :, :, : STORED.start], left[:, :, :, STORED.start :]
    assert torch.equal(sinks, exact[:, :, :, : STORED.start].half().float())
    assert torch.equal(tail, exact[:, :, :, STORED.stop :])


def test_bytes(model: Any, ids: list[int]) -> None:
    kept = random_kept(layers_alike=False)
    sinks = LAYERS * HEADS * (4 * 2 * DIM * 2 + 2)  # and the number of each head's tokens
    states = prefix_states(model, ids)
    assert shorten(states, kept, STORED).size == sinks + int(kept.sum()) * (2 * DIM * 2 + 2)
    coded = shorten(states, kept, STORED, coded=True)
    assert coded.size == sinks + int(kept.sum()) * (2 * (3 * 8 + 2) + 2)


@pytest.mark.parametrize("fraction", [*KVZIP_FRACTIONS, *FRACTIONS])
@pytest.mark.parametrize("method", EVICTIONS)
def test_the_share_of_kept_tokens_is_as_asked(method: str, fraction: float) -> None:
    stored = slice(4, 736)
    count = Eviction(method, fraction).count(stored)
    assert count + 4 == pytest.approx(fraction * 736, abs=0.5)
    scores = torch.rand(5, HEADS, 732, generator=torch.Generator().manual_seed(3))
    assert int(select(scores, method, count).sum()) == pytest.approx(5 * HEADS * count, abs=5)


@pytest.mark.parametrize("method", EVICTIONS)
def test_the_best_scored_stay(method: str) -> None:
    """Of each head, and for KVzip of all heads of all layers."""
    scores = torch.rand(LAYERS, HEADS, 100, generator=torch.Generator().manual_seed(4))
    kept = select(scores, method, 20)
    if method == "kvzip":
        assert scores[kept].min() > scores[~kept].max()
    for head, head_kept in zip(scores.flatten(0, 1), kept.flatten(0, 1), strict=True):
        assert head[head_kept].min() > head[~head_kept].max()


def test_adakv_keeps_a_fifth_of_the_even_share_in_each_head() -> None:
    scores = torch.rand(LAYERS, HEADS, 100, generator=torch.Generator().manual_seed(4))
    scores[:, 0] += 1  # would take all
    kept = select(scores, "adakv", 40).sum(-1)
    assert kept.tolist() == [[72, 8]] * LAYERS


@pytest.mark.parametrize(
    ("layers", "count", "tokens", "ends"),
    [(30, 70, 732, (136, 4)), (30, 600, 732, (732, 468)), (1, 70, 732, (136, 136))],
)
def test_pyramid(layers: int, count: int, tokens: int, ends: tuple[int, int]) -> None:
    counts = pyramid(layers, count, tokens)
    assert (counts[0], counts[-1]) == ends
    assert counts == sorted(counts, reverse=True)
    if layers > 1:
        assert sum(counts) == pytest.approx(layers * count, abs=layers / 2)


@needs_kvpress
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_every_method_selects(model: Any, ids: list[int], fraction: float) -> None:
    chosen = [Eviction(method, fraction) for method in EVICTIONS]
    first, again = (selected(model, ids, *chosen) for _ in range(2))
    for one, kept, same in zip(chosen, first, again, strict=True):
        assert kept.shape == (LAYERS, HEADS, TOKENS)
        assert torch.equal(kept, same)
        even = LAYERS * HEADS * one.count(STORED)
        assert int(kept.sum()) == pytest.approx(even, abs=LAYERS * HEADS)
    assert not hasattr(model.model.layers[0].self_attn, "rotary_emb")


@needs_kvpress
def test_streamingllm_keeps_the_latest(model: Any, ids: list[int]) -> None:
    one = Eviction("streamingllm", 0.5)
    (kept,) = selected(model, ids, one)
    count = one.count(STORED)
    assert kept[:, :, -count:].all()
    assert not kept[:, :, :-count].any()


@needs_kvpress
def test_snapkv_keeps_what_the_tail_attends_to(model: Any, ids: list[int]) -> None:
    one = Eviction("snapkv", 0.3)
    (kept,) = selected(model, ids, one)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        seen = model(torch.tensor([ids[:PREFIX]]), output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    for layer, layer_kept in zip(seen, kept, strict=True):
        paid = layer[0, :, STORED.stop :, : STORED.stop].mean(1)
        paid = torch.nn.functional.avg_pool1d(paid[None], 5, 1, 2)[0]
        paid = paid.view(HEADS, GROUPS, -1).mean(1)[:, STORED]
        for head, head_kept in zip(paid, layer_kept, strict=True):
            assert head[head_kept].min() >= head[~head_kept].max() - 1e-6
