"""The Triton entropy decoder on a device: what the twin reads, at the sizes of real pages."""

from __future__ import annotations

import struct

import pytest
import torch
from torch import Tensor

from lexico_codec.kernels.entropy.coder import decode, encode
from lexico_codec.kernels.entropy.tables import SYMBOLS, TOTAL, Tables
from lexico_proto.errors import DamagedFrame

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUDA = torch.device("cuda")
CLASSES = 19
EXTREMES = [0, 15, -15, 16, -16, 32767, 1 << 15, 1 << 20, (1 << 30) - 1, 1 - (1 << 30)]


def tables_of(seed: int) -> Tables:
    """Frequencies that fall by a factor each way from 0, nearly flat in the last classes."""
    distance = (torch.arange(SYMBOLS) - 15).abs().float()
    ratio = torch.linspace(0.05, 0.97, CLASSES)[:, None]
    weights = ratio**distance
    frequencies = 1 + (weights / weights.sum(1, keepdim=True) * (TOTAL - 2 * SYMBOLS)).int()
    frequencies[:, 15] += TOTAL - frequencies.sum(1)
    shifts = (torch.arange(CLASSES) - 12).clamp(0, 12).to(torch.uint8)
    points = torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(seed))
    return Tables(frequencies.int(), shifts, points)


def body_of(
    tables: Tables, classes: Tensor, tokens: int, seed: int, *, shifted: bool
) -> tuple[bytes, Tensor | None, Tensor]:
    """A body, its offsets, and what the twin or the library reads in it."""
    generator = torch.Generator().manual_seed(seed)
    offsets = None
    e = classes[:, None].int().repeat(1, tokens)
    if shifted:
        offsets = torch.randint(-2, 3, (tokens,), generator=generator).to(torch.int8)
        e = e + offsets
    sizes = 2.0 ** (e.clamp(max=CLASSES - 1) / 2 - 4)
    levels = (torch.randn(len(classes), tokens, generator=generator) * sizes).round().int()
    rare = torch.rand(len(classes), tokens, generator=generator) < 0.001
    drawn = torch.randint(0, len(EXTREMES), (len(classes), tokens), generator=generator)
    levels = torch.where(rare, torch.tensor(EXTREMES)[drawn].int(), levels) * (e >= 0)
    body = encode(levels, classes, offsets, tables)
    return body, offsets, decode(body, classes, offsets, tables, tokens)


def check(components: int, tokens: list[int], dtype: torch.dtype, *, shifted: bool) -> None:
    """All bodies in one launch, twice, each with classes of its own."""
    from lexico_codec.kernels.entropy import triton_decode as triton_entropy

    tables = tables_of(components)
    classes = torch.stack(
        [torch.linspace(CLASSES, -4 - i, components).round().short() for i in range(len(tokens))]
    )
    made = [
        body_of(tables, of, count, i, shifted=shifted)
        for i, (of, count) in enumerate(zip(classes, tokens, strict=True))
    ]
    offsets = [by for _, by, _ in made if by is not None]
    given = ([body for body, _, _ in made], classes, torch.cat(offsets) if offsets else None)
    first, again = (
        triton_entropy.decode(*given, tables, tokens, device=CUDA, dtype=dtype) for _ in range(2)
    )
    assert torch.equal(first, again)
    expected = torch.cat([values for _, _, values in made], 1)
    assert torch.equal(first.cpu(), expected.to(dtype))  # the device rounds to nearest, as torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shifted", [False, True], ids=["one-class", "offsets"])
@pytest.mark.parametrize(
    ("components", "tokens"),
    [
        (1, [1]),
        (7, [31, 32, 33]),
        (63, [0, 100, 1]),
        (1024, [256] * 8),
        (2048, [999, 2048]),
    ],
    ids=str,
)
def test_reads_what_the_twin_reads(
    components: int, tokens: list[int], dtype: torch.dtype, shifted: bool
) -> None:
    check(components, tokens, dtype, shifted=shifted)


def test_many_pages() -> None:
    check(256, [128] * 200, torch.bfloat16, shifted=True)


def test_another_stream_than_the_first() -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        check(200, [300], torch.float32, shifted=True)


def test_damage() -> None:
    """Raises, or gives finite values; the device goes on working."""
    from lexico_codec.kernels.entropy import triton_decode as triton_entropy

    tables = tables_of(0)
    classes = torch.linspace(CLASSES, -2, 100).round().short()
    body, offsets, expected = body_of(tables, classes, 90, 0, shifted=True)
    generator = torch.Generator().manual_seed(1)
    caught = 0
    for i in range(60):
        damaged = bytearray(body)
        if i % 3 == 0:  # lengths whose sum stays
            first, second = struct.unpack("<II", body[:8])
            moved = 2 * (i + 1)
            damaged[:8] = struct.pack("<II", first - moved, second + moved)
        elif i % 3 == 1:
            damaged[12:] = bytes([i % 256]) * (len(body) - 12)
        else:
            at = int(torch.randint(12, len(body), (), generator=generator))
            damaged[at] ^= 1 << i % 8
        try:
            values = triton_entropy.decode(
                [bytes(damaged)], classes, offsets, tables, [90], device=CUDA
            )
        except DamagedFrame:
            caught += 1
        else:
            assert bool(values.isfinite().all())
    assert caught >= 54
    made = triton_entropy.decode([body], classes, offsets, tables, [90], device=CUDA)
    assert torch.equal(made.cpu(), expected)
