"""What every codec does with a caller's memory: fills what is asked for, and nothing else."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexico_codec.codecs import Codec, Place
from lexico_codec.geometry import DTYPES
from lexico_codec.sets.dictionary import DictionarySet
from lexico_proto.errors import DamagedFrame, InvalidInput, ShapeMismatch
from tests.support.cache_layouts import LAYOUTS, PAGED, Layout, Made, Size, dense, vllm_cpu
from tests.support.groups import FAR, Shape, bits, finite, group_of

WHOLE: Shape = (3, 5, 16, 23)
"""Layers, KV heads, head_dim, tokens."""
PARTS = [
    pytest.param(range(a, b), range(c, d), id=f"layers{a}-{b}-heads{c}-{d}")
    for a, b, c, d in [
        (0, 3, 0, 2),
        (0, 3, 4, 5),
        (0, 1, 0, 5),
        (1, 3, 0, 5),
        (1, 2, 2, 4),
        (2, 3, 4, 5),
    ]
]
DRAWN = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)


def size_of(shape: Shape, dtype: str = "float16") -> Size:
    layers, heads, dim, tokens = shape
    return Size(layers, tokens, heads, dim, DTYPES[dtype])


class Coded(NamedTuple):
    """A group, and what a codec makes of it."""

    group: Tensor
    body: bytes
    whole: Tensor
    """Decoded into one tensor."""
    dictionary: DictionarySet | None


_CODED: dict[Hashable, Coded] = {}


class MemorySuite:
    """Part of `CodecSuite`."""

    codecs: ClassVar[list[Codec]]
    parts_are_exact: ClassVar[bool] = True
    """Whether some heads or layers alone are to the bit what they are among all: not so where a
    product of matrices is cut to size."""

    def dictionary(self, layers: int, head_dim: int) -> DictionarySet | None:
        raise NotImplementedError

    def encode(
        self, codec: Codec, group: Tensor, first_token: int = 0, first_layer: int = 0
    ) -> bytes:
        raise NotImplementedError

    def decode(
        self,
        codec: Codec,
        body: bytes | bytearray | memoryview,
        like: Tensor,
        first_token: int = 0,
        first_layer: int = 0,
    ) -> Tensor:
        raise NotImplementedError

    def coded(self, codec: Codec, first_token: int, dtype: str = "float16") -> Coded:
        """Made once for all tests."""
        key = (type(self), codec, first_token, dtype)
        if key not in _CODED:
            group = group_of(WHOLE, dtype)
            body = self.encode(codec, group, first_token)
            whole = self.decode(codec, body, group, first_token)
            _CODED[key] = Coded(group, body, whole, self.dictionary(WHOLE[0], WHOLE[2]))
        return _CODED[key]

    def fill(self, codec: Codec, coded: Coded, first_token: int, made: Made) -> Tensor:
        """What a memory holds of a group afterwards; all else that it lies in is still NaN."""
        memory, held = made
        place, shape = Place(0, first_token), tuple(coded.group.shape)
        codec.decode(memoryview(coded.body), place, coded.dictionary, memory, shape)
        found = memory.read().clone()
        assert finite(found), "an element was not written"
        written = sum(int((~part.float().isnan()).sum()) for part in held)
        assert written == found.numel(), "something else was written"
        return found

    @pytest.mark.parametrize("first_token", [0, 2, FAR])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts_of_engines(self, codec: Codec, layout: Layout, first_token: int) -> None:
        for dtype in DTYPES:
            coded = self.coded(codec, first_token, dtype)
            found = self.fill(codec, coded, first_token, layout(size_of(WHOLE, dtype)))
            assert torch.equal(bits(found), bits(coded.whole))

    @pytest.mark.parametrize("layout", PAGED)
    @pytest.mark.parametrize("block_tokens", [1, 7, 16, 63, 128])
    def test_blocks_of_any_size(self, codec: Codec, block_tokens: int, layout: Layout) -> None:
        """A page begins and ends within blocks, or lies in the middle of one."""
        coded = self.coded(codec, 0)
        for first_slot in {0, 1, block_tokens // 2, block_tokens - 1, block_tokens, 40}:
            size = replace(size_of(WHOLE), block_tokens=block_tokens, first_slot=first_slot)
            found = self.fill(codec, coded, 0, layout(size))
            assert torch.equal(bits(found), bits(coded.whole))

    @pytest.mark.parametrize(("layers", "heads"), PARTS)
    def test_some_layers_and_heads(self, codec: Codec, layers: range, heads: range) -> None:
        for first_token in (0, FAR):
            coded = self.coded(codec, first_token)
            expected = coded.whole[layers.start : layers.stop, :, :, heads.start : heads.stop]
            size = replace(
                size_of((len(layers), len(heads), *WHOLE[2:])),
                first_layer=layers.start,
                first_head=heads.start,
            )
            for layout in (dense, vllm_cpu):
                self.check_part(self.fill(codec, coded, first_token, layout(size)), expected)

    def check_part(self, found: Tensor, expected: Tensor) -> None:
        if self.parts_are_exact:
            assert torch.equal(bits(found), bits(expected))
        else:  # a rounding of float32 may be one of the cache's type
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)

    def test_none_of_the_layers(self, codec: Codec) -> None:
        """As a pipeline rank has it of a group that is another's."""
        coded = self.coded(codec, 0)
        memory, held = dense(replace(size_of(WHOLE), first_layer=3))
        nothing, shape = memory.within(range(3)), tuple(coded.group.shape)
        codec.decode(memoryview(coded.body), Place(0, 0), coded.dictionary, nothing, shape)
        assert bool(held[0].isnan().all())

    @DRAWN
    @given(data=st.data())
    def test_any_description(self, data: st.DataObject) -> None:
        codec = data.draw(st.sampled_from(self.codecs))
        first_token = data.draw(st.sampled_from([0, 3, FAR]))
        layers, heads = (data.draw(st.integers(1, n)) for n in WHOLE[:2])
        size = Size(
            layers,
            WHOLE[3],
            heads,
            WHOLE[2],
            block_tokens=data.draw(st.integers(1, 40)),
            first_slot=data.draw(st.integers(0, 50)),
            first_layer=data.draw(st.integers(0, WHOLE[0] - layers)),
            first_head=data.draw(st.integers(0, WHOLE[1] - heads)),
        )
        coded = self.coded(codec, first_token)
        made = data.draw(st.sampled_from(LAYOUTS))(size)
        found = self.fill(codec, coded, first_token, made)
        last_layer, last_head = size.first_layer + layers, size.first_head + heads
        self.check_part(
            found, coded.whole[size.first_layer : last_layer, :, :, size.first_head : last_head]
        )

    @pytest.mark.parametrize("first_token", [0, FAR])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_encodes_from_layouts_of_engines(
        self, codec: Codec, layout: Layout, first_token: int
    ) -> None:
        """The same bytes as from one tensor, and nothing of what lies around the page."""
        for dtype in DTYPES:
            coded = self.coded(codec, first_token, dtype)
            memory, held = layout(size_of(WHOLE, dtype))
            memory.write(coded.group)
            before = [bits(part).clone() for part in held]
            made = codec.encode(memory, Place(0, first_token), coded.dictionary)
            assert bytes(made) == coded.body
            for part, was in zip(held, before, strict=True):
                assert torch.equal(bits(part), was), "encode wrote to its input"

    def test_memory_that_does_not_fit_is_refused_unwritten(self, codec: Codec) -> None:
        group, body, _, dictionary = self.coded(codec, 0)
        size = size_of(WHOLE)
        for named, wrong in {
            "layers": replace(size, first_layer=1),
            "heads": replace(size, first_head=1),
            "tokens": replace(size, tokens=WHOLE[3] - 1),
            "head_dim": replace(size, dim=WHOLE[2] + 1),
        }.items():
            memory, held = dense(wrong)
            with pytest.raises(ShapeMismatch, match=named):
                codec.decode(memoryview(body), Place(0, 0), dictionary, memory, tuple(group.shape))
            assert bool(held[0].isnan().all())
        room = torch.full((1, *group.shape[1:]), float("nan"), dtype=group.dtype)
        with pytest.raises(InvalidInput, match="share memory"):
            codec.decode(memoryview(body), Place(0, 0), dictionary, room.expand_as(group))
        assert bool(room.isnan().all())

    @pytest.mark.parametrize("first_token", [0, FAR])
    def test_damaged_bodies_write_nothing(self, codec: Codec, first_token: int) -> None:
        _, body, _, dictionary = self.coded(codec, first_token)
        memory, held = vllm_cpu(size_of(WHOLE))
        for end in range(0, len(body), max(1, len(body) // 17)):
            with pytest.raises(DamagedFrame):
                codec.decode(memoryview(body)[:end], Place(0, first_token), dictionary, memory)
        assert all(bool(part.isnan().all()) for part in held)
