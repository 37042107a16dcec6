"""Layouts of vLLM's caches are found by what the engine writes, and pages lie where it reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexico_client.engines.vllm._layout import LAYOUTS, recognised, transposed_keys
from lexico_client.engines.vllm._orders import LoadOrder
from lexico_client.engines.vllm._paged import PagedCache, PageTarget, in_order
from lexico_client.engines.vllm._writing import writing
from lexico_codec.geometry import DTYPES, Geometry
from lexico_codec.memory import CacheMemory
from lexico_codec.spec import CacheSpec, make_spec
from lexico_proto.errors import Unsupported
from tests.support.groups import bits
from tests.support.vllm_caches import (
    KNOWN,
    EngineCache,
    Make,
    cpu,
    flash,
    packed,
    shuffled,
)

sizes = st.tuples(
    st.sampled_from([16, 32, 48, 256]),  # block
    st.sampled_from([1, 2, 3]),  # heads
    st.sampled_from([8, 16, 48]),  # dim
    st.sampled_from([5, 16, 64, 100]),  # page
)


def spec_of(heads: int, dim: int, page: int, dtype: str = "float32", layers: int = 2) -> CacheSpec:
    return make_spec(
        weights=bytes(32),
        geometry=Geometry(layers, heads, dim, dtype),
        codec="raw",
        page_tokens=page,
        group_layers=1,
    )


def engine(
    make: Make, spec: CacheSpec, block_tokens: int, blocks: int
) -> tuple[PagedCache, list[EngineCache]]:
    g = spec.geometry
    made = [
        make(blocks, block_tokens, g.kv_heads, g.head_dim, g.torch_dtype) for _ in range(g.layers)
    ]
    layers = [(f"layers.{i}.attn", each.registered, each.write) for i, each in enumerate(made)]
    return PagedCache.over(layers, spec, block_tokens)[0], made


def kv(spec: CacheSpec, tokens: int, seed: int = 0) -> Tensor:
    """`[layers, 2, tokens, heads, dim]`."""
    g = spec.geometry
    generator = torch.Generator().manual_seed(seed)
    shape = (g.layers, 2, tokens, g.kv_heads, g.head_dim)
    return torch.randn(shape, generator=generator).to(g.torch_dtype)


def slots_of(table: list[int], block_tokens: int, tokens: int) -> Tensor:
    return torch.tensor(
        [table[i // block_tokens] * block_tokens + i % block_tokens for i in range(tokens)]
    )


def written(made: list[EngineCache], cache: Tensor, slots: Tensor) -> None:
    """The engine computes a prompt."""
    for layer, each in enumerate(made):
        each.write(cache[layer, 0], cache[layer, 1], slots)


@settings(max_examples=30, deadline=None)
@given(make=st.sampled_from(KNOWN), size=sizes, dtype=st.sampled_from(list(DTYPES)), data=st.data())
def test_pages_of_any_engine_are_read_where_it_wrote_them(
    make: Make, size: tuple[int, int, int, int], dtype: str, data: st.DataObject
) -> None:
    block, heads, dim, page = size
    spec = spec_of(heads, dim, page, dtype)
    tokens = data.draw(st.integers(1, 3 * page))
    needed = -(-tokens // block)
    cache, made = engine(make, spec, block, needed + 2)
    table = data.draw(st.permutations(range(needed + 2)))[:needed]
    computed = kv(spec, tokens)
    written(made, computed, slots_of(table, block, tokens))
    first = data.draw(st.integers(0, tokens - 1))
    count = data.draw(st.integers(1, tokens - first))
    expected = computed[:, :, first : first + count]
    assert torch.equal(bits(cache.copied(table, first, count)), bits(expected))


@settings(max_examples=30, deadline=None)
@given(make=st.sampled_from(KNOWN), size=sizes, dtype=st.sampled_from(list(DTYPES)), data=st.data())
def test_a_load_writes_what_is_wanted_and_nothing_else(
    make: Make, size: tuple[int, int, int, int], dtype: str, data: st.DataObject
) -> None:
    block, heads, dim, page = size
    spec = spec_of(heads, dim, page, dtype)
    tokens = data.draw(st.integers(page, 3 * page))
    start = data.draw(st.integers(0, tokens - 1))
    stop = data.draw(st.integers(start + 1, tokens))
    needed = -(-tokens // block)
    cache, made = engine(make, spec, block, needed + 1)
    table = data.draw(st.permutations(range(needed + 1)))[:needed]
    before = torch.full_like(kv(spec, needed * block), 7.0)
    written(made, before, slots_of(table, block, needed * block))
    order = LoadOrder("a", spec, torch.empty(0).numpy(), tuple(table), start, stop)
    target, stored = PageTarget(cache, spec, order), kv(spec, 3 * page)
    came = data.draw(st.integers(0, len(target.pages)))
    view = target(len(target.pages))
    for number in target.pages[:came]:
        for group in range(spec.groups):
            out, part = (
                view(number, group),
                stored[group : group + 1].narrow(2, number * page, page),
            )
            assert isinstance(out, Tensor | CacheMemory)
            (out.write if isinstance(out, CacheMemory) else out.copy_)(part)
    target.settle(came)
    there = min(stop, (target.pages.start + came) * page)
    expected = before.clone()
    expected[:, :, start:there] = stored[:, :, start:there]
    assert torch.equal(bits(cache.copied(table, 0, needed * block)), bits(expected))
    missing = {table[token // block] for token in range(max(there, start), stop)}
    assert target.lost(came) == missing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("make", KNOWN, ids=lambda make: make.__name__)
def test_the_probe_leaves_zeros(make: Make, dtype: torch.dtype) -> None:
    made = make(4, 16, 3, 8, dtype)
    found = recognised(made.tensor, 16, 3, 8, made.write)[1]
    views = [view.float() for view in found]
    probed = [view[1] for view in views]
    assert all(view.isfinite().sum() == 3 * 3 * 8 for view in probed)
    assert all(view.nan_to_num().count_nonzero() == 0 for view in views)


@pytest.mark.parametrize("square", [16, 32])
def test_layouts_of_one_shape_are_told_apart(square: int) -> None:
    """A block of as many tokens as a head has components is the hardest case."""
    for make, name in (
        (cpu, "keys of a block transposed, then values"),
        (packed, next(iter(LAYOUTS))),
    ):
        for dtype in (torch.float32, torch.float8_e4m3fn, torch.float8_e5m2):
            made = make(3, square, 2, square, dtype)
            assert recognised(made.tensor, square, 2, square, made.write)[0] == name


@pytest.mark.parametrize("make", KNOWN, ids=lambda make: make.__name__)
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_a_kernel_that_rounds_to_eight_bits_is_found(make: Make, dtype: str) -> None:
    """vLLM's is given numbers in the model's type, and a tensor of bytes."""
    made = make(4, 16, 3, 8, DTYPES[dtype])
    write = writing({"layer": attention(made)}, "layer", made.registered, torch.bfloat16)
    cache, _ = PagedCache.over(
        [("layer", made.registered, write)], spec_of(3, 8, 16, dtype, layers=1), 16
    )
    computed = kv(spec_of(3, 8, 16, dtype, layers=1), 16)
    made.write(computed[0, 0], computed[0, 1], torch.arange(16, 32))
    assert torch.equal(bits(cache.copied([1], 0, 16)), bits(computed))


@pytest.mark.parametrize("scale", [0.5, torch.tensor([1.0, 1.0, 2.0])], ids=["all", "a head"])
def test_scales_of_a_checkpoint_are_refused_in_one_line(scale: Any) -> None:
    made = packed(4, 16, 3, 8, torch.float8_e4m3fn)
    layers = {"layer": attention(made, _v_scale=torch.as_tensor(scale))}
    with pytest.raises(Unsupported, match=r"layer: .* divided by 1 and .*only caches of scale 1"):
        writing(layers, "layer", made.registered, torch.bfloat16)
    wide = packed(4, 16, 3, 8, torch.bfloat16)  # where nothing is divided
    writing(layers, "layer", wide.registered, torch.bfloat16)


def test_the_other_kind_of_eight_bits_is_found_in_no_layout() -> None:
    """The same bytes mean other numbers there: vLLM calls both fp8."""
    made = packed(4, 16, 3, 8, torch.float8_e4m3fnuz)
    write = writing({"layer": attention(made)}, "layer", made.registered, torch.bfloat16)
    spec = spec_of(3, 8, 16, "float8_e4m3fn", layers=1)
    with pytest.raises(Unsupported, match="found in no layout"):
        PagedCache.over([("layer", made.registered, write)], spec, 16)


def attention(made: EngineCache, **scales: Any) -> SimpleNamespace:
    """A layer of vLLM."""
    one = torch.ones(())
    impl = SimpleNamespace(do_kv_cache_update=made.update())
    return SimpleNamespace(impl=impl, **{"_k_scale": one, "_v_scale": one, **scales})


def test_an_unknown_layout_is_refused_in_one_line() -> None:
    made = shuffled(3, 16, 2, 8, torch.float32)
    with pytest.raises(Unsupported, match="found in no layout") as refused:
        recognised(made.tensor, 16, 2, 8, made.write, "model.layers.0.attn")
    assert "\n" not in str(refused.value)


def test_a_tensor_of_another_shape_is_refused() -> None:
    made = flash(3, 16, 2, 8, torch.float32)
    with pytest.raises(Unsupported, match="this layout is not known"):
        recognised(made.tensor, 16, 4, 8, made.write)
    assert transposed_keys(torch.zeros(3, 16, 2, 16).transpose(1, 2), 16, 2, 8) is None


def test_layers_are_ordered_by_number_and_must_be_all_there() -> None:
    one = torch.zeros(1)
    names = [f"model.layers.{i}.self_attn.attn" for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)]
    assert [name.split(".")[2] for name, _ in in_order(dict.fromkeys(names, one))] == [
        str(i) for i in range(11)
    ]
    for bad in (["layers.1.attn"], ["layers.0.attn", "draft.0.attn"], ["attn"], ["a.0.b.1"]):
        with pytest.raises(Unsupported):
            in_order(dict.fromkeys(bad, one))


def test_another_dtype_and_other_layers_are_refused() -> None:
    made = packed(2, 16, 2, 8, torch.bfloat16)
    layers = [("layers.0.attn", made.tensor, made.write)]
    with pytest.raises(Unsupported, match="2"):
        PagedCache.over(layers, spec_of(2, 8, 16), 16)
    with pytest.raises(Unsupported, match="bfloat16"):
        PagedCache.over(layers, spec_of(2, 8, 16, layers=1), 16)
