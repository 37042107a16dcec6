"""Host pools as SGLang keeps them, and what it is started with, without SGLang.

Pools are NaN until an engine computes something.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

LAYERS, HEADS, DIM = 3, 2, 8
PAGES: Final = 12


@dataclass
class HostPool:
    """The attributes of `HostKVCache` that a backend reads, and its ways to give single pages."""

    layout: str = "page_first_direct"
    page_size: int = 16
    dtype: torch.dtype = torch.float32
    layer_num: int = LAYERS
    head_num: int = HEADS
    head_dim: int = DIM
    pages: int = PAGES
    kv_buffer: Tensor = field(init=False)

    def __post_init__(self) -> None:
        n, p, t, h, d = self.layer_num, self.pages, self.page_size, self.head_num, self.head_dim
        shape = {
            "layer_first": (2, n, p * t, h, d),
            "page_first": (2, p * t, n, h, d),
            "page_first_direct": (2, p, n, t, h, d),
            "page_head": (2, p, h, t, n, d),
        }[self.layout]
        nothing = 0xFF if self.dtype == torch.uint8 else float("nan")  # NaN of 8 bits
        self.kv_buffer = torch.full(shape, nothing, dtype=self.dtype)

    def compute(self, page: int, cache: Tensor) -> None:
        """An engine's keys and values of a page, `[layers, 2, page_size, heads, dim]`."""
        slots = slice(page * self.page_size, (page + 1) * self.page_size)
        for layer in range(self.layer_num):
            for which in range(2):
                vectors = cache[layer, which].to(self.dtype)
                if self.layout == "layer_first":
                    self.kv_buffer[which, layer, slots] = vectors
                elif self.layout == "page_first":
                    self.kv_buffer[which, slots, layer] = vectors
                elif self.layout == "page_first_direct":
                    self.kv_buffer[which, page, layer] = vectors
                else:
                    self.kv_buffer[which, page, :, :, layer] = vectors.transpose(0, 1)

    def computed(self, page: int) -> Tensor:
        """What `compute` wrote, read back token by token."""
        found = torch.empty(
            self.layer_num, 2, self.page_size, self.head_num, self.head_dim, dtype=self.dtype
        )
        for layer in range(self.layer_num):
            for which in range(2):
                for token in range(self.page_size):
                    slot = page * self.page_size + token
                    if self.layout == "layer_first":
                        vectors = self.kv_buffer[which, layer, slot]
                    elif self.layout == "page_first":
                        vectors = self.kv_buffer[which, slot, layer]
                    elif self.layout == "page_first_direct":
                        vectors = self.kv_buffer[which, page, layer, token]
                    else:
                        vectors = self.kv_buffer[which, page, :, token, layer]
                    found[layer, which, token] = vectors
        return found

    def slots(self, *pages: int) -> Tensor:
        """Host indices of all tokens of some pages."""
        return torch.cat([torch.arange(self.page_size) + page * self.page_size for page in pages])

    def get_data_page(self, index: int) -> Tensor:
        """A page by itself, flat, by the slot of its first token."""
        slots = slice(index, index + self.page_size)
        if self.layout == "layer_first":
            return self.kv_buffer[:, :, slots].flatten()
        if self.layout == "page_first":
            return self.kv_buffer[:, slots].flatten()
        return self.kv_buffer[:, index // self.page_size].flatten()

    def get_dummy_flat_data_page(self) -> Tensor:
        """Room for a page."""
        return torch.full_like(self.get_data_page(0), float("nan"))


def started_with(folder: Path, **changes: Any) -> dict[str, Any]:
    """Arguments of an engine, by name: those that the backend reads."""
    return {
        "model_path": str(folder),
        "revision": None,
        "load_format": "auto",
        "quantization": None,
        "kv_cache_dtype": "auto",
        "quantization_param_path": None,
        "json_model_override_args": "{}",
        "speculative_algorithm": None,
        "disaggregation_mode": "null",
        **changes,
    }
