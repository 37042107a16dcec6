"""What lets SGLang's hierarchical cache run with `device="cpu"`, and its processes be forked.

SGLang's copies between device and host are kernels of its GPU wheel, and its host memory is pinned
for CUDA. Here the copies are torch's own, in the layouts that SGLang gives them. Nothing of a
storage backend, of its threads or of the cache's logic is touched.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

HOST_RESERVE_BYTES: Final = 1 << 30
"""In place of SGLang's 10 GiB."""


def before_import() -> None:
    """The operators of torchvision that its Python names, where its library does not load. May be
    called more than once."""
    if _KEPT:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


def install() -> None:
    """Binds the copies, and frees host memory of CUDA. SGLang must be imported."""
    from sglang.srt.mem_cache.pool_host import base, common, mha

    for copy in (
        transfer_kv_direct,
        transfer_kv_per_layer_direct_pf_lf,
        transfer_kv_all_layer_direct_lf_pf,
    ):
        setattr(mha, copy.__name__, copy)
    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = HOST_RESERVE_BYTES
    for module in (common, mha):
        for name in ("_cuda_host_register", "_cuda_host_unregister"):
            setattr(module, name, _nothing)
    whole = base.HostKVCache.__init__

    def unpinned(self: Any, *arguments: Any, **named: Any) -> None:
        whole(self, *arguments, **{**named, "pin_memory": False})

    base.HostKVCache.__init__ = unpinned


def fork_processes() -> None:
    """Has SGLang fork its scheduler in place of starting a Python that imports all anew."""
    chosen = multiprocessing.set_start_method

    def forked(method: str | None, force: bool = False) -> None:
        chosen("fork", force=True)

    multiprocessing.set_start_method = forked
    torch.multiprocessing.set_start_method = forked


def transfer_kv_direct(
    src_layers: Sequence[Tensor],
    dst_layers: Sequence[Tensor],
    src_indices: Tensor,
    dst_indices: Tensor,
    page_size: int,
) -> None:
    """Token by token, both sides with a tensor a layer."""
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices] = source[src_indices]


def transfer_kv_per_layer_direct_pf_lf(
    src_ptrs: Sequence[Tensor],
    dst_ptrs: Sequence[Tensor],
    src_indices: Tensor,
    dst_indices: Tensor,
    layer_id: int,
    page_size: int,
) -> None:
    """Pages `[pages, layers, tokens, …]` into a layer `[tokens, …]`."""
    pages = src_indices[::page_size] // page_size
    for source, target in zip(src_ptrs, dst_ptrs, strict=True):
        target[dst_indices] = source[pages, layer_id].flatten(0, 1)


def transfer_kv_all_layer_direct_lf_pf(
    src_ptrs: Sequence[Tensor],
    dst_ptrs: Sequence[Tensor],
    src_indices: Tensor,
    dst_indices: Tensor,
    page_size: int,
) -> None:
    """Layers `[tokens, …]`, keys and then values, into pages `[pages, layers, tokens, …]`."""
    pages, layers = dst_indices[::page_size] // page_size, len(src_ptrs) // len(dst_ptrs)
    for which, target in enumerate(dst_ptrs):
        for layer in range(layers):
            source = src_ptrs[which * layers + layer][src_indices]
            target[pages, layer] = source.unflatten(0, (-1, page_size))


def _nothing(*_: Any, **__: Any) -> None:
    """In place of what CUDA is told."""


_KEPT: Final[list[Any]] = []
