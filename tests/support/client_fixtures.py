"""Small specs, caches and dictionary sets for the client's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lexico_client import Timeouts
from lexico_codec.geometry import Geometry
from lexico_codec.sets.dictionary import AtomSet, DictionarySet
from lexico_codec.sets.info import SetInfo
from lexico_codec.spec import CacheSpec, make_spec
from tests.support.waiting import PATIENCE_S

LAYERS, KV_HEADS, HEAD_DIM, PAGE_TOKENS = 5, 3, 16, 8
TOKENS = list(range(100, 100 + 4 * PAGE_TOKENS + 3))  # four pages and a tail

PATIENT = Timeouts(
    match=PATIENCE_S,
    load=PATIENCE_S,
    idle=PATIENCE_S,
    offload=PATIENCE_S,
    dictionaries=PATIENCE_S,
)
"""For calls that must succeed: the defaults are those of a node that would rather recompute."""


def small_spec(codec: str = "raw", dtype: str = "float16", dictionary: bytes = b"") -> CacheSpec:
    """A spec whose pages have three groups, the last one shorter."""
    return make_spec(
        weights=bytes(range(32)),
        geometry=Geometry(LAYERS, KV_HEADS, HEAD_DIM, dtype),
        codec=codec,
        dictionary=dictionary,
        page_tokens=PAGE_TOKENS,
        group_layers=2,
    )


def small_dictionary(
    seed: int = 0, layers: int = LAYERS, head_dim: int = HEAD_DIM, kv_heads: int = KV_HEADS
) -> DictionarySet:
    """A set of random unit vectors."""
    generator = torch.Generator().manual_seed(seed)

    def atoms() -> Tensor:
        return torch.nn.functional.normalize(torch.randn(40, head_dim, generator=generator), dim=-1)

    info = SetInfo(
        model=f"random-{seed}",
        kv_heads=kv_heads,
        rope={},
        sparsity=8,
        training={"seed": seed},
        corpus_digest="00" * 32,
        held_out=[],
        command="none",
    )
    return AtomSet.build([(atoms(), atoms()) for _ in range(layers)], info)


def random_cache(spec: CacheSpec, pages: int, seed: int = 1) -> Tensor:
    """`[layers, 2, pages * page_tokens, kv_heads, head_dim]`."""
    g = spec.geometry
    generator = torch.Generator().manual_seed(seed)
    shape = (g.layers, 2, pages * spec.page_tokens, g.kv_heads, g.head_dim)
    return torch.randn(shape, generator=generator).to(g.torch_dtype)


def views_of(spec: CacheSpec, cache: Tensor) -> Callable[[int, int], Tensor]:
    """The cache's groups, as views: a source, or what a target gives."""

    def view(page: int, group: int) -> Tensor:
        layers, first = spec.group_range(group), page * spec.page_tokens
        return cache[layers.start : layers.stop, :, first : first + spec.page_tokens]

    return view


class Landing:
    """A target: NaN until something is loaded into it."""

    def __init__(self, spec: CacheSpec) -> None:
        self.spec = spec
        self.cache = torch.empty(0)
        self.pages: list[int] = []

    def __call__(self, pages: int) -> Callable[[int, int], Tensor]:
        self.pages.append(pages)
        self.cache = torch.full_like(random_cache(self.spec, pages), float("nan"))
        return views_of(self.spec, self.cache)


def counted(
    source: Callable[[int, int], Tensor], asked: list[tuple[int, int]]
) -> Callable[[int, int], Tensor]:
    """A source that writes down what it is asked for."""

    def read(page: int, group: int) -> Tensor:
        asked.append((page, group))
        return source(page, group)

    return read


def flipped(frame: bytes, at: int = -1) -> bytes:
    """A frame with one bit turned."""
    damaged = bytearray(frame)
    damaged[at] ^= 1
    return bytes(damaged)


def first_pages(cache: Tensor, spec: CacheSpec, pages: int) -> Tensor:
    """The cache's first pages."""
    return cache[:, :, : pages * spec.page_tokens]


def names(errors: Sequence[BaseException | None]) -> list[str]:
    """Class names, for comparison."""
    return [type(error).__name__ for error in errors]
