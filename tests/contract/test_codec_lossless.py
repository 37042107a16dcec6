"""lossless: every bit comes back, in fewer bytes, and no body makes more than the group's."""

from __future__ import annotations

import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from lexico_codec.codecs import Codec, LosslessCodec, Place, RawCodec
from lexico_codec.geometry import DTYPES, Geometry
from lexico_proto.errors import DamagedFrame
from tests.contract.codec_suite import FAR, SMALL, CodecSuite, Shape, bits, group_of

CODEC = LosslessCodec()
LARGE: Shape = (2, 3, 64, 64)
OF_RAW = {
    "float32": 0.86,
    "float16": 0.89,
    "bfloat16": 0.71,
    "float8_e4m3fn": 0.86,
    "float8_e5m2": 0.74,
}
"""Most bytes over those of raw, of a normal distribution of one scale a table."""


def deflated(data: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return coder.compress(data) + coder.flush()


def with_planes(planes: list[bytes]) -> bytes:
    """A body with these planes, its sizes right."""
    return np.array([len(plane) for plane in planes], "<u4").tobytes() + b"".join(planes)


class TestLosslessCodec(CodecSuite):
    codecs: ClassVar[list[Codec]] = [CODEC]
    bounded_from_noise: ClassVar[bool] = False  # its bodies are the elements themselves

    @pytest.fixture
    def codec(self) -> Codec:
        return CODEC

    def has_fixed_size(self, codec: Codec) -> bool:
        return False

    def check_decoded(self, codec: Codec, group: Tensor, out: Tensor, sinks: int) -> None:
        assert torch.equal(bits(out), bits(group))

    # Every bit

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_bit_of_odd_numbers(self, dtype: str) -> None:
        """-0.0, subnormals, the largest and the smallest."""
        group = group_of(SMALL, dtype)
        info = torch.finfo(group.dtype)
        odd = [-0.0, 0.0, info.max, info.min, info.tiny, info.tiny / 2, -info.smallest_normal / 4]
        group.view(-1)[: len(odd)] = torch.tensor(odd, dtype=torch.float64).to(group.dtype)
        out = self.round_trip(CODEC, group)
        assert torch.equal(bits(out), bits(group))
        assert bool(torch.signbit(out.view(-1)[0].float()))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_every_number_of_sixteen_bits(self, dtype: str) -> None:
        """NaN among them: `encode_group` refuses those, here they are bits like others."""
        every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
        group = every.view(DTYPES[dtype]).view(2, 2, 128, 1, 128)
        assert torch.equal(bits(self.round_trip(CODEC, group)), bits(group))

    @pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
    def test_every_number_of_eight_bits(self, dtype: str) -> None:
        every = torch.arange(256, dtype=torch.int16).to(torch.uint8).repeat(16)
        group = every.view(DTYPES[dtype]).view(2, 2, 64, 1, 16)
        assert torch.equal(bits(self.round_trip(CODEC, group)), bits(group))

    def test_every_bit_pattern_of_float32(self) -> None:
        generator = torch.Generator().manual_seed(5)
        words = torch.randint(-(1 << 31), 1 << 31, (2 * 2 * 9 * 3 * 16,), generator=generator)
        group = words.to(torch.int32).view(torch.float32).view(2, 2, 9, 3, 16)
        assert torch.equal(bits(self.round_trip(CODEC, group)), bits(group))

    # Sizes

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_smaller_than_raw(self, dtype: str) -> None:
        group = group_of(LARGE, dtype)
        raw = len(bytes(RawCodec().encode(group, Place(0, FAR), None)))
        assert len(self.encode(CODEC, group)) < OF_RAW[dtype] * raw

    def test_noise_costs_its_sizes_alone(self) -> None:
        generator = torch.Generator().manual_seed(5)
        words = torch.randint(-(1 << 15), 1 << 15, (4 * 9000,), generator=generator)
        group = words.to(torch.int16).view(torch.float16).view(2, 2, 30, 3, 100)
        raw, header = 2 * len(words), 4 * 2 * 4
        assert len(self.encode(CODEC, group)) == raw + header
        geometry = Geometry(2, 3, 100, "float16")
        assert 2 * CODEC.encoded_bytes(geometry, 30) == raw + header

    @pytest.mark.parametrize("exact", ["float16", "bfloat16"])
    def test_numbers_that_need_half_their_bits_take_no_more(self, exact: str) -> None:
        """A float32 cache of a model that computes in 16 bits."""
        half = group_of(LARGE, exact)
        assert len(self.encode(CODEC, half.float())) < 1.2 * len(self.encode(CODEC, half))

    def test_tables_of_other_scales_do_not_mix(self) -> None:
        """As many bytes for layers whose exponents differ as for those layers apart."""
        group = group_of((2, 3, 64, 64), "bfloat16")
        group[1] *= 2**20
        apart = sum(len(self.encode(CODEC, group[[layer]])) for layer in (0, 1))
        assert len(self.encode(CODEC, group)) == apart

    def test_zeros_take_next_to_nothing(self) -> None:
        group = torch.zeros(2, 2, 64, 8, 128, dtype=torch.bfloat16)
        assert len(self.encode(CODEC, group)) < group.numel() * 2 / 100

    # Bodies that no encoder made

    def test_a_body_of_another_zlib(self) -> None:
        """Which planes are deflated, and how well, is the encoder's choice."""
        group = group_of(SMALL)
        plain = with_planes([b"\0" * 240] * 8)
        assert bool((self.decode(CODEC, plain, group) == 0).all())
        packed = with_planes([deflated(b"\0" * 240), b"\0" * 240] * 4)
        assert bool((self.decode(CODEC, packed, group) == 0).all())

    @pytest.mark.parametrize(
        ("plane", "says"),
        [
            (b"", "0 bytes or more"),
            (b"\xff" * 20, "cannot be inflated"),
            (deflated(b"\0" * 239), "239 bytes"),
            (deflated(b"\0" * 241), "241 bytes"),
            (deflated(b"\0" * 240) + b"\0", "240 bytes"),
            (deflated(b"\0" * 240)[:-1], "bytes"),
            (zlib.compress(b"\0" * 240), "cannot be inflated"),
            (b"\0" * 241, "its sizes"),
        ],
        ids=["empty", "noise", "short", "long", "more behind", "cut", "zlib header", "too large"],
    )
    def test_each_check_of_a_plane(self, plane: bytes, says: str) -> None:
        group = group_of(SMALL)
        for index in (0, 7):
            planes = [b"\0" * 240] * 8
            planes[index] = plane
            with pytest.raises(DamagedFrame, match=says):
                self.decode(CODEC, with_planes(planes), group)

    def test_sizes_that_do_not_add_up(self) -> None:
        group = group_of(SMALL)
        sound = self.encode(CODEC, group)
        for sizes in ([0] * 8, [0xFFFFFFFF] * 8, [len(sound) - 32] + [0] * 7):
            body = np.array(sizes, "<u4").tobytes() + sound[32:]
            with pytest.raises(DamagedFrame, match="its sizes"):
                self.decode(CODEC, body, group)

    def test_a_bomb_is_not_inflated(self) -> None:
        """A thousand times the plane in a few bytes: no more than a plane is ever made of it."""
        like = torch.empty(1, 2, 1000, 1, 100, dtype=torch.float16)
        bomb = deflated(bytes(50_000_000))
        assert len(bomb) < 100_000
        body = memoryview(with_planes([bomb] * 4))
        tracemalloc.start()
        try:
            with pytest.raises(DamagedFrame, match="100001 bytes or more"):
                CODEC.decode(body, Place(0, 0), None, like)
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()

    def test_nothing_is_written_before_everything_is_sound(self) -> None:
        group = group_of(SMALL)
        body = bytearray(with_planes([b"\0" * 240] * 7 + [deflated(b"\0" * 239)]))
        out = torch.full_like(group, float("nan"))
        with pytest.raises(DamagedFrame):
            CODEC.decode(memoryview(body), Place(0, 0), None, out)
        assert bool(out.isnan().all())

    def test_threads_share_a_codec(self) -> None:
        groups = [group_of(LARGE, seed=seed) for seed in range(6)]
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda group: self.round_trip(CODEC, group), groups))
        for group, out in zip(groups, made, strict=True):
            assert torch.equal(bits(out), bits(group))
