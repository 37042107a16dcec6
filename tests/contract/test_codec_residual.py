"""lexico-residual does what every codec must, and gives any part of a group."""

from __future__ import annotations

import pytest
import torch

from lexico_codec.codecs import Codec, Place, ResidualCodec
from lexico_codec.geometry import DTYPES, Geometry
from lexico_codec.memory import CacheMemory
from lexico_proto.errors import (
    DictionaryMismatch,
)
from tests.contract.codec_suite import (
    FAR,
    SHAPES,
    SMALL,
    CodecSuite,
    Shape,
    group_of,
)
from tests.contract.residual_case import BALANCED, MIXED, ResidualCase, coded, relative
from tests.support.residual_sets import (
    residual_set,
)


class TestResidualCodec(ResidualCase, CodecSuite):
    @pytest.mark.parametrize("shape", SHAPES)
    def test_declared_size_is_about_the_real_one(self, codec: Codec, shape: Shape) -> None:
        """It is an estimate, for models: what is sure is that a body stays below raw bytes."""
        layers, heads, dim, tokens = shape
        assert isinstance(codec, ResidualCodec)
        for dtype in DTYPES:
            geometry = Geometry(layers, heads, dim, dtype)
            body = self.encode(codec, group_of(shape, dtype), FAR)
            assert len(body) < 2 * layers * heads * dim * tokens * 2 + 8 * tokens + 8
            assert codec.encoded_bytes(geometry, tokens) < 2 * heads * dim * tokens * 2
        wide = Geometry(layers, 100 * heads, dim, dtype)
        ratio = codec.encoded_bytes(wide, tokens) / codec.encoded_bytes(geometry, tokens)
        assert ratio == pytest.approx(100, rel=0.1)

    @pytest.mark.parametrize("run", [0, 1, 2])
    def test_layers_of_the_middle(self, codec: Codec, run: int) -> None:
        """A group that starts at layer 2 is the second run of two layers."""
        group, dictionary = group_of(SMALL), residual_set(6, 3, 16, runs=3)
        body, out = coded(codec, group, dictionary, first_layer=2 * run)  # type: ignore[arg-type]
        assert relative(out, group) < 0.1
        other, _ = coded(codec, group, dictionary, first_layer=(2 * run + 2) % 6)  # type: ignore[arg-type]
        assert body != other

    def test_zeros(self, codec: Codec) -> None:
        self.mean = 0.0
        super().test_zeros(codec)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_subnormal_values(self, codec: Codec, dtype: str) -> None:
        self.mean = 0.0
        super().test_subnormal_values(codec, dtype)

    @pytest.mark.parametrize(("blocks", "joint"), [(1, 0), (2, 24), (3, 24), (4, 7), (6, 96)])
    def test_heads_need_not_be_those_of_blocks(self, blocks: int, joint: int) -> None:
        """The transform's blocks are of any components: a rank may hold halves of them."""
        group, dictionary = group_of(MIXED), residual_set(2, 3, 16, blocks=blocks, joint=joint)
        body, whole = coded(BALANCED, group, dictionary, first_token=2)
        for layers, heads in [((0, 2), (1, 2)), ((1, 2), (0, 3)), ((1, 2), (2, 3))]:
            part = whole[slice(*layers), :, :, slice(*heads)]
            out = torch.full_like(part, float("nan"))
            target = CacheMemory.over(out, first_layer=layers[0], first_head=heads[0])
            place, shape = Place(0, 2), tuple(group.shape)
            BALANCED.decode(memoryview(body), place, dictionary, target, shape)
            self.check_part(out, part)

    # Tokens

    @pytest.mark.parametrize(("dtype", "largest"), [("float16", 65504.0), ("bfloat16", 1e30)])
    def test_large_values_stay_finite(self, codec: Codec, dtype: str, largest: float) -> None:
        """A page of nothing else is refused: a set that fits it would be another one."""
        group = torch.full_like(group_of(SMALL, "float32"), largest).to(DTYPES[dtype])
        with pytest.raises(DictionaryMismatch):
            self.encode(codec, group, FAR)
