"""Problems for the entropy coder, typical and random, and ways to damage their bodies."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lexico_codec.kernels import library
from lexico_codec.kernels.entropy.coder import decode, encode
from lexico_codec.kernels.entropy.tables import (
    LEVEL_LIMIT,
    MAX_SHIFT,
    SYMBOLS,
    TOTAL,
    Tables,
)

KERNELS = ["naive", *(["compiled"] if library.available() else [])]
ISAS = ["naive", *(library.supported() if library.available() else [])]
needs_library = pytest.mark.skipif(not library.available(), reason="not compiled here")
EXTREMES = [0, 1, -1, 15, -15, 16, -16, 32767, 1 << 15, 1 << 20, LEVEL_LIMIT, -LEVEL_LIMIT]


@pytest.fixture(params=ISAS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The twin, or the library on each instruction set."""
    if request.param == "naive":
        return "naive"
    monkeypatch.setenv(library.ISA_VARIABLE, request.param)
    return "compiled"


@dataclass(frozen=True)
class Problem:
    levels: Tensor
    classes: Tensor
    offsets: Tensor | None
    tables: Tables

    @property
    def tokens(self) -> int:
        return self.levels.shape[1]

    def encode(self, kernel: str | None = None) -> bytes:
        return encode(self.levels, self.classes, self.offsets, self.tables, kernel=kernel)

    def decode(self, body: bytes, kernel: str | None = None, *, levels: bool = False) -> Tensor:
        given = (self.classes, self.offsets, self.tables, self.tokens)
        return decode(body, *given, levels=levels, kernel=kernel)

    def effective(self) -> Tensor:
        """`[components, tokens]`: the class of each value."""
        by = torch.zeros(self.tokens) if self.offsets is None else self.offsets
        return (self.classes[:, None].int() + by.int()).clamp(max=self.tables.classes - 1)


def gaussian(sigmas: Tensor, shifts: Tensor) -> Tables:
    """What an encoder of normal values would make: sigma in steps, one class each."""
    edges = (torch.arange(-15, 17).double() - 0.5) * 2.0 ** shifts[:, None]
    below = (1 + torch.erf(edges / (sigmas[:, None].double() * math.sqrt(2)))) / 2
    share = below.diff(dim=1)
    share = torch.cat([share, 1 - share.sum(1, keepdim=True)], 1)
    frequencies = (share * TOTAL).round().clamp(1).int()
    most = frequencies.argmax(1, keepdim=True)
    missing = TOTAL - frequencies.sum(1, keepdim=True)
    frequencies.scatter_add_(1, most, missing.int())
    points = torch.arange(16.0) - 0.2 / (1 + torch.arange(16.0))
    return Tables(frequencies, shifts.to(torch.uint8), points.repeat(len(sigmas), 1))


def typical(
    components: int, tokens: int, seed: int, *, shifted: bool, classes: int = 19
) -> Problem:
    """Normal values of falling sigma, 2^3.5 to 2^-5.5 steps, then components that are not coded."""
    generator = torch.Generator().manual_seed(seed)
    sigmas = 2.0 ** (torch.arange(classes) / 2 - 5.5)
    shifts = (sigmas.log2() - 1).floor().clamp(0)
    tables = gaussian(sigmas, shifts)
    of = torch.linspace(classes - 1, -3, components).round().short()
    offsets = None
    if shifted:
        offsets = torch.randint(-2, 3, (tokens,), generator=generator).to(torch.int8)
    made = Problem(torch.zeros(components, tokens).int(), of, offsets, tables)
    e = made.effective()
    noise = torch.randn(components, tokens, generator=generator)
    levels = (noise * sigmas[e.clamp(0).long()]).round().int() * (e >= 0)
    return Problem(levels.int(), of, offsets, tables)


def check(problem: Problem, kernel: str) -> bytes:
    """The kernel gives the twin's bytes, and back what went in."""
    body = problem.encode(kernel)
    assert body == problem.encode("naive")
    assert torch.equal(problem.decode(body, kernel, levels=True), problem.levels)
    made, expected = problem.decode(body, kernel), problem.decode(body, "naive")
    assert torch.equal(made.view(torch.int32), expected.view(torch.int32))
    return body


def any_problem(
    components: int, tokens: int, classes: int, offsets: int | None, flat: bool, seed: int
) -> Problem:
    """Random tables, classes in no order, values from nothing to the limits."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    if flat:
        frequencies = torch.full((classes, SYMBOLS), TOTAL // SYMBOLS)
    else:
        weights = torch.rand(classes, SYMBOLS, generator=generator) ** 8
        frequencies = (weights / weights.sum(1, keepdim=True) * 4000).long()  # some have none
        frequencies[:, -1] += TOTAL - frequencies.sum(1)
    dtype = torch.uint16 if seed % 2 else torch.int32
    tables = Tables(
        frequencies.to(dtype),
        draw(0, MAX_SHIFT, classes).to(torch.uint8),
        torch.randn(classes, 16, generator=generator),
    )
    of = draw(-3, classes + 2, components).short()
    by = None if offsets is None else draw(-offsets, offsets, tokens).to(torch.int8)
    bare = Problem(torch.zeros(components, tokens).int(), of, by, tables)
    sizes = 2.0 ** draw(0, 30, components, 1)
    levels = ((2 * torch.rand(components, tokens, generator=generator) - 1) * sizes).long()
    extremes = torch.tensor(EXTREMES)[draw(0, len(EXTREMES) - 1, components, tokens)]
    levels = torch.where(draw(0, 9, components, tokens) == 0, extremes, levels)
    levels = levels.clamp(-LEVEL_LIMIT, LEVEL_LIMIT) * (bare.effective() >= 0)
    return Problem(levels.int(), of, by, tables)


# Damage


def mutations(body: bytes, seed: int) -> Iterator[bytes]:
    """Cut, stretched, with flipped bits, with other lengths, shuffled and made up."""
    draw = random.Random(seed)
    yield from (b"", body[:-1], body[:-2], body + b"\0", body + b"\0\0", body * 2)
    for _ in range(12):
        yield body[: draw.randrange(len(body))]
        damaged = bytearray(body)
        for _ in range(draw.choice([1, 1, 2, 20])):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        yield bytes(damaged)
        damaged = bytearray(body)
        first = draw.randrange(len(damaged))
        damaged[first : first + 40] = draw.randbytes(len(damaged[first : first + 40]))
        yield bytes(damaged)
    for length in (0, 1, 127, 128, 1 << 16, 1 << 31, (1 << 32) - 1):
        yield struct.pack("<I", length) + body[4:]
    first, second = struct.unpack("<II", body[:8])
    for moved in (2, -2, 64, 1, second):  # the sum stays
        yield (
            struct.pack("<II", (first + moved) % (1 << 32), (second - moved) % (1 << 32)) + body[8:]
        )
    for fill in (b"\0", b"\xff", b"\x1f"):
        yield body[:12] + fill * (len(body) - 12)
