"""A prompt with a random cache for a real service, whose last page can be held back."""

from __future__ import annotations

import threading

import torch

from lexico_client import PageView
from lexico_codec.geometry import Geometry
from lexico_codec.sets.builtin import load_builtin
from lexico_codec.spec import CacheSpec, make_spec
from tests.support.waiting import PATIENCE_S

SMOLLM2 = Geometry(30, 3, 64, "float16", load_builtin("smollm2-135m").rope)


def spec_of(codec: str, page_tokens: int = 64) -> CacheSpec:
    digest = load_builtin("smollm2-135m").digest if codec == "lexico" else b""
    return make_spec(
        weights=b"w" * 32,
        geometry=SMOLLM2,
        codec=codec,
        dictionary=digest,
        page_tokens=page_tokens,
    )


class Cache:
    """A prompt with a random cache, and memory to load it into.

    Of one with `hold` the last page is not offloaded before `last` is set: until then the offload
    is under way. It has four pages at least: the ingress asks for the fourth, and begins to miss
    it, once the first is stored.
    """

    def __init__(self, spec: CacheSpec, pages: int, seed: int, hold: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.spec = spec
        self.last = threading.Event()
        if not hold:
            self.last.set()
        self.tokens = [seed * 1000 + i for i in range(pages * spec.page_tokens)]
        self.made = [self._page(generator) for _ in range(pages)]
        self.loaded = [[torch.full_like(g, float("nan")) for g in page] for page in self.made]

    def _page(self, generator: torch.Generator) -> list[torch.Tensor]:
        shapes = [self.spec.group_shape(group) for group in range(self.spec.groups)]
        return [torch.randn(shape, generator=generator).half() for shape in shapes]

    def source(self, page: int, group: int) -> torch.Tensor:
        if page == len(self.made) - 1:
            self.last.wait(PATIENCE_S)
        return self.made[page][group]

    def target(self, pages: int) -> PageView:
        return lambda page, group: self.loaded[page][group]

    def error(self, page: int) -> float:
        """Relative error of what was loaded of a page."""
        made = torch.cat([g.flatten() for g in self.made[page]]).float()
        loaded = torch.cat([g.flatten() for g in self.loaded[page]]).float()
        return float((made - loaded).norm() / made.norm())
