"""What every page must hold: a cache that follows from the page's key alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lexico_codec.geometry import Geometry
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group, encode_group
from lexico_codec.spec import CacheSpec, make_spec
from tests.support.client_fixtures import HEAD_DIM, KV_HEADS, LAYERS, small_dictionary

PAGE_TOKENS: Final = 32
GEOMETRY: Final = Geometry(LAYERS, KV_HEADS, HEAD_DIM, "float16")
CODECS: Final = ("raw", "lossless", "lexico")
DICTIONARY: Final = small_dictionary()
CONVERSATIONS: Final = 60
MOST_PAGES: Final = 24


def spec_of(codec: str) -> CacheSpec:
    """The spec of a codec's pages: three frames each."""
    return make_spec(
        weights=bytes(range(32)),
        geometry=GEOMETRY,
        codec=codec,
        dictionary=DICTIONARY.digest if codec == "lexico" else b"",
        page_tokens=PAGE_TOKENS,
        group_layers=2,
    )


@dataclass(frozen=True)
class Conversation:
    """A prompt that many nodes know. The first third of its pages is shared by ten of them."""

    spec: CacheSpec
    number: int

    def tokens(self, pages: int) -> list[int]:
        """Of its leading pages."""
        shared, own = (
            np.random.default_rng([seed, kind]).integers(0, 50_000, MOST_PAGES * PAGE_TOKENS)
            for seed, kind in ((self.number // 10, 0), (self.number, 1))
        )
        common = MOST_PAGES // 3 * PAGE_TOKENS
        ids = np.concatenate([shared[:common], own[common:]])
        return [int(token) for token in ids[: pages * PAGE_TOKENS]]


@lru_cache(maxsize=256)
def offered(spec: CacheSpec, key: bytes) -> Tensor:
    """`[layers, 2, page_tokens, kv_heads, head_dim]`: what nodes offload as a page."""
    seed = int.from_bytes(key[:8], "little") >> 1
    generator = torch.Generator().manual_seed(seed)
    g = GEOMETRY
    shape = (g.layers, 2, PAGE_TOKENS, g.kv_heads, g.head_dim)
    return torch.randn(shape, generator=generator).to(g.torch_dtype)


@lru_cache(maxsize=256)
def expected(spec: CacheSpec, key: bytes, page: int) -> Tensor:
    """What a load must give: what was offered, through the codec and back."""
    cache = offered(spec, key)
    if spec.codec.lossless:
        return cache
    came = torch.empty_like(cache)
    for group in range(spec.groups):
        layers = spec.group_range(group)
        run = slice(layers.start, layers.stop)
        frame = encode_group(spec, key, page, group, cache[run], DICTIONARY)
        decode_group(spec, key, page, group, bytes(frame), came[run], DICTIONARY)
    return came


def wrong_pages(spec: CacheSpec, tokens: list[int], cache: Tensor, pages: int) -> list[int]:
    """Which of the leading pages are not what they must be.

    Args:
        cache: `[layers, 2, pages * page_tokens, kv_heads, head_dim]`.
        pages: that the load says it gave.
    """
    keys = page_keys(spec, tokens)
    return [
        page
        for page in range(pages)
        if not torch.equal(
            cache[:, :, page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS],
            expected(spec, keys[page], page),
        )
    ]
