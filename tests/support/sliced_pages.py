"""Pages of random bytes, the slices of them, and ways to split a model."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from lexico_codec.slices import Slice
from lexico_codec.spec import CacheSpec


def whole_page(spec: CacheSpec, seed: int = 0) -> npt.NDArray[np.uint8]:
    """`[layers, 2, tokens, kv_heads, bytes of a head]`."""
    g = spec.geometry
    shape = (g.layers, 2, spec.page_tokens, g.kv_heads, g.head_dim * g.itemsize)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def bodies_of(spec: CacheSpec, page: npt.NDArray[np.uint8], held: Slice) -> bytes:
    """The bytes of a slice."""
    layers, heads = held.layers, held.heads
    return page[layers.start : layers.stop, :, :, heads.start : heads.stop].tobytes()


def split(layers: int, heads: int, tensor: int, pipeline: int = 1) -> list[Slice]:
    """What each rank holds, ranks of one pipeline stage after another."""
    stages = [layers * at // pipeline for at in range(pipeline + 1)]
    same = max(1, tensor // heads)
    each = max(1, heads // tensor)
    return [
        Slice(range(*stage), range(rank // same * each, rank // same * each + each))
        for stage in pairwise(stages)
        for rank in range(tensor)
    ]


@st.composite
def grids(draw: st.DrawFn, layers: int, heads: int) -> list[Slice]:
    """Any way to share out layers and heads: the heads of each run of layers split otherwise."""
    return [Slice(stage, rank) for stage in draw(_runs(layers)) for rank in draw(_runs(heads))]


@st.composite
def _runs(draw: st.DrawFn, count: int) -> list[range]:
    cuts = draw(st.sets(st.integers(1, count - 1))) if count > 1 else set()
    return [range(*run) for run in pairwise([0, *sorted(cuts), count])]
