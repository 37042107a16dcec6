"""What the sections of `bench.gpu` share: times, limits of the card, and what is coded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import triton.testing
from torch import Tensor

from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import Scoring, encode

M: Final = 128
LAYERS: Final = 32
KV_HEADS: Final = 8
Q_HEADS: Final = 32
VECTORS_A_TOKEN: Final = 2 * LAYERS * KV_HEADS

Limits = dict[str, float]
Row = dict[str, Any]


def median_ms(call: Callable[..., Any], *args: Any, **keywords: Any) -> float:
    """Milliseconds of `call(*args, **keywords)`."""

    def once() -> None:
        call(*args, **keywords)

    return float(triton.testing.do_bench(once, warmup=50, rep=200, return_mode="median"))


def replayed_ms(call: Callable[..., Any], *args: Any, **keywords: Any) -> float:
    """The same of what the device does alone: the launches are replayed as a graph."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and makes what is made once
        for _ in range(2):
            call(*args, **keywords)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call(*args, **keywords)
    replayed = median_ms(graph.replay)
    del kept
    return replayed


def limits_of_card() -> Limits:
    """What this card does now: TFLOP/s of a bf16 product on random data, TB/s of a copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = median_ms(torch.matmul, a, b)
    source = torch.empty(1 << 30, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    copy = median_ms(target.copy_, source)
    return {
        "bf16_tflops": 2 * 8192**3 / product / 1e9,
        "copy_tbytes": 2 * source.numel() * 4 / copy / 1e9,
    }


def random_atoms(size: int, m: int = M, tables: int = 1) -> Atoms:
    generator = torch.Generator(device="cuda").manual_seed(size)
    drawn = torch.randn(tables * size, m, generator=generator, device="cuda")
    unit = torch.nn.functional.normalize(drawn, dim=1).half().float()
    return Atoms.of(unit, range(0, (tables + 1) * size, size))


def random_vectors(count: int, m: int = M) -> Tensor:
    generator = torch.Generator(device="cuda").manual_seed(count)
    return torch.randn(count, m, generator=generator, device="cuda", dtype=torch.bfloat16)


def encode_ours(vectors: Tensor, atoms: Atoms, sparsity: int, scoring: Scoring = "bf16") -> Codes:
    return encode(vectors, atoms, sparsity, quantised=True, scoring=scoring, kernel="triton")
