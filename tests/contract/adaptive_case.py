"""What the tests of codec lexico-adaptive share."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from lexico_codec.codecs import AdaptiveCodec, Codec, LexicoCodec, Place
from lexico_codec.codecs.adaptive import added_atoms
from lexico_codec.codecs.lexico import ragged_codes
from lexico_codec.kernels.pursuit.codes import Codes
from tests.contract.codec_suite import (
    FAR,
    CodecCase,
)
from tests.support.dictionaries import random_set, unit_rows

USUAL = AdaptiveCodec()
FIXED = AdaptiveCodec(sparsity=8, tolerance=None, added=16, bits=8)


FP8 = 2.0**-4
"""Largest relative error of a coefficient."""


def relative(decoded: Tensor, group: Tensor) -> Tensor:
    """Error of each vector over its norm."""
    return (decoded.float() - group.float()).norm(dim=-1) / group.float().norm(dim=-1)


def through(codec: Codec, group: Tensor, first_token: int = FAR) -> tuple[bytes, Tensor]:
    dictionary = random_set(group.shape[0], group.shape[-1])
    body = bytes(codec.encode(group, Place(0, first_token), dictionary))
    out = torch.full_like(group, float("nan"))
    codec.decode(memoryview(body), Place(0, first_token), dictionary, out)
    return body, out


def parse(body: bytes, codec: AdaptiveCodec, like: Tensor) -> tuple[list[int], Tensor, Codes]:
    """Atoms that each table adds, those atoms, and codes; of a body without sinks."""
    layers, _, tokens, heads, dim = like.shape
    sizes = [96, 95] * layers
    counts, atoms, rest = added_atoms.read(
        memoryview(body), 2 * layers, dim, codec.bits, codec.added
    )
    whole = [size + count for size, count in zip(sizes, counts, strict=True)]
    return counts, atoms, ragged_codes.read(rest, whole, tokens * heads, codec.sparsity)


def odd_group(kinds: int, times: int, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Keys that are `kinds` random directions, each `times` times in some size; zero values.

    Also the kind of each key.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = unit_rows(kinds, 64, seed)
    kind = torch.randperm(kinds * times, generator=generator) % kinds
    sizes = 1 + 4 * torch.rand(len(kind), 1, generator=generator)
    group = torch.zeros(1, 2, len(kind), 1, 64)
    group[0, 0, :, 0] = sizes * directions[kind]
    return group, kind


class AdaptiveCase(CodecCase):
    """Codes groups with sets of codec lexico."""

    codecs: ClassVar[list[Codec]] = [USUAL, FIXED]

    @pytest.fixture(params=codecs, ids=["usual", "fixed"])
    def codec(self, request: pytest.FixtureRequest) -> Codec:
        codec: AdaptiveCodec = request.param
        return codec

    def has_fixed_size(self, codec: Codec) -> bool:
        return False

    def check_decoded(self, codec: Codec, group: Tensor, out: Tensor, sinks: int) -> None:
        """No vector is worse than in lexico, but for what the tolerance allows."""
        assert isinstance(codec, AdaptiveCodec)
        if group.shape[2] == sinks:
            return
        exact, decoded = group[:, :, sinks:].float(), out[:, :, sinks:].float()
        plain = LexicoCodec(codec.sparsity, codec.tolerance)
        dictionary, coded = random_set(group.shape[0], group.shape[-1]), torch.empty_like(group)
        first = 4 - sinks if sinks else FAR
        body = plain.encode(group, Place(0, first), dictionary)
        plain.decode(memoryview(body), Place(0, first), dictionary, coded)
        allowed = (coded[:, :, sinks:].float() - exact).norm(dim=-1)
        norms = exact.norm(dim=-1)
        allowed = torch.maximum(allowed, (codec.tolerance or 0.0) * norms)
        rounding = 0.0 if group.dtype == torch.float32 else torch.finfo(group.dtype).eps
        slack = (2 * rounding + 1e-4) * norms
        assert bool(((decoded - exact).norm(dim=-1) <= allowed + slack).all())
