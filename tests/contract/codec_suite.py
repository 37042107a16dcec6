"""The definition of a codec: what every one must do. Each subclasses `CodecSuite`.

`CodecCase` is how a test codes a group, and has no tests: those of one codec alone subclass it.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexico_codec.codecs import CODECS, Codec, Place, codec_from_config
from lexico_codec.geometry import DTYPES, Geometry
from lexico_codec.sets.dictionary import DictionarySet
from lexico_proto.errors import DamagedFrame
from tests.contract.memory_suite import MemorySuite
from tests.support.dictionaries import random_set
from tests.support.groups import FAR as FAR
from tests.support.groups import Shape as Shape
from tests.support.groups import bits as bits
from tests.support.groups import finite as finite
from tests.support.groups import group_of as group_of
from tests.support.guarded_memory import guarded
from tests.support.peak_memory import growing_at_most

GUARD = 64
"""Elements before and after `out` that no decode may touch."""

# (layers, kv_heads, head_dim, page_tokens)
SHAPES = [
    pytest.param(shape, id="L{}-H{}-D{}-T{}".format(*shape))
    for shape in [(1, 3, 63, 5), (3, 1, 80, 1), (2, 3, 128, 100), (1, 1, 64, 1), (1, 7, 80, 4)]
]
SMALL = (2, 3, 16, 5)
RANDOM = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
    ],
)


class CodecCase:
    """Codes groups with the sets of a codec. Subclasses give `codecs` and what is true of each."""

    codecs: ClassVar[list[Codec]]
    """Configurations to run everything with; the first is the default one."""
    size_tolerance: ClassVar[float] = 0.0
    """Relative difference allowed between `encoded_bytes` and a body without sinks."""
    bounded_from_noise: ClassVar[bool] = True
    """Whether a body that parses never gives NaN or infinity outside the sinks."""

    def dictionary(self, layers: int, head_dim: int) -> DictionarySet | None:
        return random_set(layers, head_dim) if self.codecs[0].needs_dictionary else None

    @pytest.fixture
    def codec(self, request: pytest.FixtureRequest) -> Codec:
        """Each of `codecs`: subclasses parametrise it."""
        raise NotImplementedError

    def has_fixed_size(self, codec: Codec) -> bool:
        """Whether every vector takes the same bytes; else `encoded_bytes` is the most."""
        return True

    def encode(
        self, codec: Codec, group: Tensor, first_token: int = 0, first_layer: int = 0
    ) -> bytes:
        dictionary = self.dictionary(first_layer + group.shape[0], group.shape[-1])
        before = bits(group).clone()
        body = bytes(codec.encode(group, Place(first_layer, first_token), dictionary))
        assert torch.equal(bits(group), before), "encode wrote to its input"
        return body

    def decode(
        self,
        codec: Codec,
        body: bytes | bytearray | memoryview,
        like: Tensor,
        first_token: int = 0,
        first_layer: int = 0,
    ) -> Tensor:
        """Decodes into memory filled with NaN, between guards that must stay NaN."""
        dictionary = self.dictionary(first_layer + like.shape[0], like.shape[-1])
        room = torch.full((like.numel() + 2 * GUARD,), float("nan"), dtype=like.dtype)
        out = room[GUARD:-GUARD].view(like.shape)
        try:
            codec.decode(memoryview(body), Place(first_layer, first_token), dictionary, out)
        finally:
            assert bool(room[:GUARD].float().isnan().all()), "written before out"
            assert bool(room[-GUARD:].float().isnan().all()), "written after out"
        return out

    def round_trip(self, codec: Codec, group: Tensor, first_token: int = 0) -> Tensor:
        return self.decode(codec, self.encode(codec, group, first_token), group, first_token)

    def check_decoded(self, codec: Codec, group: Tensor, out: Tensor, sinks: int) -> None:
        """What the codec promises of the tokens that are not sinks. Subclasses override it."""

    def check_survives(
        self, codec: Codec, body: bytes | bytearray | memoryview, like: Tensor, first_token: int
    ) -> None:
        """DamagedFrame, or an `out` that is written in full with numbers."""
        try:
            out = self.decode(codec, body, like, first_token)
        except DamagedFrame:
            return
        if self.bounded_from_noise:
            sinks = codec.sink_tokens(first_token, like.shape[2])
            assert finite(out[:, :, sinks:])


class CodecSuite(CodecCase, MemorySuite):
    """What holds of every codec, whatever it loses."""

    # Identity

    def test_registered_under_its_name(self, codec: Codec) -> None:
        assert CODECS[codec.name] is type(codec)
        assert 1 <= codec.codec_id < 1 << 16
        assert codec.name == codec.name.strip().lower()
        assert "" not in codec.name.split("-")

    def test_default_configuration_is_the_first(self) -> None:
        assert codec_from_config(self.codecs[0].name) == self.codecs[0]

    def test_configuration_is_canonical_json(self, codec: Codec) -> None:
        text = codec.config_json()
        config = json.loads(text)
        assert text == json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
        usual = {
            field.name for field in fields(codec) if getattr(codec, field.name) == field.default
        }
        assert config.keys() == {field.name for field in fields(codec)} - (codec.later & usual)
        again = codec_from_config(codec.name, text)
        assert again == codec
        assert again.config_json() == text
        loose = json.dumps(dict(reversed(config.items())), indent=2)
        assert codec_from_config(codec.name, loose).config_json() == text

    def test_configurations_differ_in_their_text(self) -> None:
        assert len({codec.config_json() for codec in self.codecs}) == len(self.codecs)

    # Sizes and sinks

    @RANDOM
    @given(st.integers(0, 5000), st.integers(1, 300))
    def test_sinks_are_a_property_of_the_sequence(self, first: int, tokens: int) -> None:
        """However it is cut into pages, the same leading tokens are exact."""
        for codec in self.codecs:
            whole = codec.sink_tokens(0, 5300)
            assert whole <= 255  # one byte in the header
            inside = codec.sink_tokens(first, tokens)
            assert inside == max(0, min(first + tokens, whole) - first)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_declared_size_is_about_the_real_one(self, codec: Codec, shape: Shape) -> None:
        layers, heads, dim, tokens = shape
        for dtype in DTYPES:
            body = self.encode(codec, group_of(shape, dtype), FAR)
            declared = layers * codec.encoded_bytes(Geometry(layers, heads, dim, dtype), tokens)
            assert len(body) <= declared * (1 + self.size_tolerance)
            if self.has_fixed_size(codec):
                assert len(body) >= declared * (1 - self.size_tolerance)

    # Round trips

    @pytest.mark.parametrize("first_token", [0, 2, 3, 4, FAR])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_round_trip(self, codec: Codec, shape: Shape, dtype: str, first_token: int) -> None:
        group = group_of(shape, dtype)
        out = self.round_trip(codec, group, first_token)
        assert finite(out), "an element was not written, or overflowed"
        sinks = codec.sink_tokens(first_token, shape[3])
        assert torch.equal(bits(out[:, :, :sinks]), bits(group[:, :, :sinks])), "sinks not exact"
        self.check_decoded(codec, group, out, sinks)

    def test_lossless_codecs_give_back_every_bit(self, codec: Codec) -> None:
        """And others say that they do not: nodes leave them the newest tokens."""
        group = group_of((2, 3, 128, 100))
        assert torch.equal(bits(self.round_trip(codec, group)), bits(group)) == codec.lossless

    @pytest.mark.parametrize("first_layer", [0, 1, 5])
    def test_layers_of_the_middle(self, codec: Codec, first_layer: int) -> None:
        group = group_of(SMALL)
        body = self.encode(codec, group, FAR, first_layer)
        self.check_decoded(codec, group, self.decode(codec, body, group, FAR, first_layer), 0)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_same_input_same_bytes(self, codec: Codec, shape: Shape) -> None:
        group = group_of(shape)
        body = self.encode(codec, group)
        assert self.encode(codec, group.clone()) == body
        first, second = (self.decode(codec, body, group) for _ in range(2))
        assert torch.equal(bits(first), bits(second))

    def test_any_buffer_holds_a_body(self, codec: Codec) -> None:
        group = group_of(SMALL)
        body = self.encode(codec, group)
        expected = self.decode(codec, body, group)
        for offset in range(4):
            shifted = memoryview(bytearray(offset) + body)[offset:]
            for buffer in (shifted, shifted.toreadonly()):
                assert torch.equal(bits(self.decode(codec, buffer, group)), bits(expected))
            assert bytes(shifted) == body, "decode wrote to its input"

    @pytest.mark.parametrize("order", [(1, 0, 2, 3, 4), (0, 1, 3, 2, 4), (4, 2, 3, 1, 0)], ids=str)
    def test_out_of_any_strides(self, codec: Codec, order: tuple[int, ...]) -> None:
        group = group_of(SMALL)
        body = self.encode(codec, group)
        out = torch.full([group.shape[axis] for axis in order], float("nan"), dtype=group.dtype)
        out = out.permute([order.index(axis) for axis in range(5)])
        codec.decode(memoryview(body), Place(0, 0), self.dictionary(2, 16), out)
        assert torch.equal(bits(out), bits(self.decode(codec, body, group)))

    def test_zeros(self, codec: Codec) -> None:
        group = torch.zeros_like(group_of(SMALL))
        assert bool((self.round_trip(codec, group, FAR) == 0).all())

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_subnormal_values(self, codec: Codec, dtype: str) -> None:
        tiny = torch.finfo(DTYPES[dtype]).smallest_normal
        group = (group_of(SMALL, "float32") * tiny / 64).to(DTYPES[dtype])
        out = self.round_trip(codec, group, FAR).double()
        assert bool(out.isfinite().all())
        assert float(out.abs().max()) <= 4 * float(group.double().abs().max())

    @pytest.mark.parametrize(
        ("dtype", "largest"),
        [
            ("float16", 65504.0),
            ("bfloat16", 1e30),
            ("float8_e4m3fn", 448.0),
            ("float8_e5m2", 57344.0),
        ],
    )
    def test_large_values_stay_finite(self, codec: Codec, dtype: str, largest: float) -> None:
        signs = group_of(SMALL, "float32").sign()
        for group in (signs * largest, torch.full_like(signs, largest)):
            assert finite(self.round_trip(codec, group.to(DTYPES[dtype]), FAR))

    # Bodies that no encoder made

    @RANDOM
    @given(data=st.data())
    def test_truncated_bodies(self, data: st.DataObject) -> None:
        codec = data.draw(st.sampled_from(self.codecs))
        first_token = data.draw(st.sampled_from([0, FAR]))
        group = group_of(SMALL)
        body = self.encode(codec, group, first_token)
        end = data.draw(st.integers(0, len(body) - 1))
        for part in (body[:end], body[len(body) - end :]):
            with pytest.raises(DamagedFrame):
                self.decode(codec, part, group, first_token)

    @RANDOM
    @given(more=st.binary(min_size=1, max_size=50), data=st.data())
    def test_extended_bodies(self, more: bytes, data: st.DataObject) -> None:
        codec = data.draw(st.sampled_from(self.codecs))
        first_token = data.draw(st.sampled_from([0, FAR]))
        group = group_of(SMALL)
        with pytest.raises(DamagedFrame):
            self.decode(codec, self.encode(codec, group, first_token) + more, group, first_token)

    @RANDOM
    @given(data=st.data())
    def test_altered_bodies(self, data: st.DataObject) -> None:
        """A checksum stands before this; behind it nothing may crash, nor leave `out` unwritten."""
        codec = data.draw(st.sampled_from(self.codecs))
        first_token = data.draw(st.sampled_from([0, FAR]))
        group = group_of(SMALL)
        body = bytearray(self.encode(codec, group, first_token))
        for _ in range(data.draw(st.integers(1, 8))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        self.check_survives(codec, body, group, first_token)

    @RANDOM
    @given(data=st.data())
    def test_random_bodies(self, data: st.DataObject) -> None:
        codec = data.draw(st.sampled_from(self.codecs))
        group = group_of(SMALL)
        size = len(self.encode(codec, group, FAR))
        body = data.draw(st.binary(min_size=size, max_size=size) | st.binary(max_size=2 * size))
        self.check_survives(codec, body, group, FAR)

    @pytest.mark.parametrize("first_token", [0, FAR])
    def test_corpus_of_bodies(self, codec: Codec, first_token: int) -> None:
        group = group_of(SMALL)
        size = len(self.encode(codec, group, first_token))
        for byte in (0x00, 0x01, 0x04, 0x08, 0x7E, 0x7F, 0x80, 0xFE, 0xFF):
            for length in (0, 1, 2, 3, size // 2, size - 1, size, size + 1, size + 3, 2 * size):
                self.check_survives(codec, bytes([byte]) * length, group, first_token)

    @pytest.mark.parametrize("byte", [0x00, 0x7F, 0xFF])
    def test_broken_bodies_make_no_large_memory(self, codec: Codec, byte: int) -> None:
        """Whatever a body says of lengths and counts: the group is of a thousand numbers."""
        group = group_of(SMALL)
        sound = self.encode(codec, group, FAR)
        self.decode(codec, sound, group, FAR)  # what is made once and kept
        with growing_at_most(32 << 20):
            for at in range(0, len(sound), max(1, len(sound) // 48)):
                rest = len(sound) - at
                self.check_survives(codec, sound[:at] + bytes([byte]) * rest, group, FAR)

    @pytest.mark.parametrize("byte", [0x00, 0x7F, 0xFF])
    def test_nothing_behind_a_body_is_read(self, codec: Codec, byte: int) -> None:
        """The memory after it ends the process that looks at it."""
        group = group_of(SMALL)
        sound = self.encode(codec, group, FAR)
        self.decode(codec, guarded(sound), group, FAR)
        for at in range(0, len(sound), max(1, len(sound) // 48)):
            self.check_survives(codec, guarded(sound[:at]), group, FAR)
            broken = sound[:at] + bytes([byte]) * (len(sound) - at)
            self.check_survives(codec, guarded(broken), group, FAR)
