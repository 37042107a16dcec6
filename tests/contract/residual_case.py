"""What the tests of codec lexico-residual share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from lexico_codec.codecs import Codec, Place, ResidualCodec
from lexico_codec.geometry import Rope
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.sets.transform import CLASSES_AN_OCTAVE
from tests.contract.codec_suite import (
    FAR,
    SMALL,
    CodecCase,
    Shape,
)
from tests.support.residual_sets import (
    products,
    residual_set,
    transform_of,
)

BALANCED, NEAR, OWN = ResidualCodec(), ResidualCodec("near"), ResidualCodec(step=0.5)
ROPE = Rope(tuple(10000 ** (-i / 8) for i in range(8)), "half", 1.5)
MIXED: Shape = (2, 3, 16, 70)
"""Two blocks of 32 tokens and one of 6."""


def coded(
    codec: ResidualCodec, group: Tensor, dictionary: DictionarySet, **place: Any
) -> tuple[bytes, Tensor]:
    """The body, and what it is decoded to."""
    at = Place(**{"first_layer": 0, "first_token": FAR, **place})
    body = codec.encode(group, at, dictionary)
    out = torch.full_like(group, float("nan"))
    codec.decode(memoryview(body), at, dictionary, out)
    return bytes(body), out


def prepared(group: Tensor) -> Tensor:
    """`[2 layers, D, tokens]` float32, as the transform takes a group without RoPE."""
    return group.float().permute(0, 1, 3, 4, 2).flatten(2, 3).flatten(0, 1)


def relative(out: Tensor, group: Tensor) -> float:
    return float((out.double() - group.double()).norm() / group.double().norm())


class ResidualCase(CodecCase):
    """Codes groups with random sets of their own heads, whose products are exact."""

    codecs: ClassVar[list[Codec]] = [BALANCED, NEAR, OWN]
    parts_are_exact: ClassVar[bool] = False
    heads = SMALL[1]
    mean = 0.5

    @pytest.fixture(autouse=True)
    def exact_products(self) -> Iterator[None]:
        """What a machine with quick products of bfloat16 loses has a test of its own."""
        with products(quick=False):
            yield

    @pytest.fixture(params=codecs, ids=["balanced", "near", "step"])
    def codec(self, request: pytest.FixtureRequest) -> Codec:
        codec: ResidualCodec = request.param
        return codec

    def dictionary(self, layers: int, head_dim: int) -> DictionarySet:
        return residual_set(layers, self.heads, head_dim, mean=self.mean)

    def encode(
        self, codec: Codec, group: Tensor, first_token: int = 0, first_layer: int = 0
    ) -> bytes:
        self.heads = group.shape[3]
        return super().encode(codec, group, first_token, first_layer)

    def decode(
        self,
        codec: Codec,
        body: bytes | bytearray | memoryview,
        like: Tensor,
        first_token: int = 0,
        first_layer: int = 0,
    ) -> Tensor:
        self.heads = like.shape[3]
        return super().decode(codec, body, like, first_token, first_layer)

    def has_fixed_size(self, codec: Codec) -> bool:
        return False

    def check_decoded(self, codec: Codec, group: Tensor, out: Tensor, sinks: int) -> None:
        """The components of each token are off by about a step of its own, not more."""
        assert isinstance(codec, ResidualCodec)
        if group.shape[2] == sinks:
            return
        layers, _, _, heads, dim = group.shape
        transform = transform_of(residual_set(layers, heads, dim, mean=self.mean))
        step = transform.steps[codec.quality] if codec.step is None else codec.step
        before = transform.analyse(0, prepared(group[:, :, sinks:]))
        after = transform.analyse(0, prepared(out[:, :, sinks:]))
        gains = transform.gains_of(0, before).float()
        finer = step * torch.exp2(-gains / CLASSES_AN_OCTAVE)
        rounding = 0.0 if group.dtype == torch.float32 else torch.finfo(group.dtype).eps
        error = (after - before).square().mean(0).sqrt()
        slack = 1e-4 + 2 * rounding * group[:, :, sinks:].float().square().mean().sqrt()
        assert bool((error <= 0.45 * finer + slack).all()), float((error / finer).max())
