"""raw: every bit comes back."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from lexico_codec.codecs import Codec, RawCodec
from lexico_codec.geometry import DTYPES
from tests.contract.codec_suite import SMALL, CodecSuite, bits, group_of


class TestRawCodec(CodecSuite):
    codecs: ClassVar[list[Codec]] = [RawCodec()]
    bounded_from_noise: ClassVar[bool] = False  # its bodies are the elements themselves

    @pytest.fixture
    def codec(self) -> Codec:
        return RawCodec()

    def check_decoded(self, codec: Codec, group: Tensor, out: Tensor, sinks: int) -> None:
        assert torch.equal(bits(out), bits(group))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_bit_of_odd_numbers(self, dtype: str) -> None:
        """-0.0, subnormals, the largest and the smallest."""
        group = group_of(SMALL, dtype)
        info = torch.finfo(group.dtype)
        odd = [-0.0, 0.0, info.max, info.min, info.tiny, info.tiny / 2, -info.smallest_normal / 4]
        group.view(-1)[: len(odd)] = torch.tensor(odd, dtype=torch.float64).to(group.dtype)
        out = self.round_trip(RawCodec(), group)
        assert torch.equal(bits(out), bits(group))
        assert bool(torch.signbit(out.view(-1)[0].float()))
        assert float(out.view(-1)[5]) > 0

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_every_number_of_sixteen_bits(self, dtype: str) -> None:
        every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
        group = every.view(DTYPES[dtype]).view(2, 2, 128, 1, 128)
        body = self.encode(RawCodec(), group)
        out = torch.zeros_like(group)
        RawCodec().decode(memoryview(body), None, None, out)  # type: ignore[arg-type]
        assert torch.equal(bits(out), bits(group))

    @pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
    def test_every_number_of_eight_bits(self, dtype: str) -> None:
        every = torch.arange(256, dtype=torch.int16).to(torch.uint8).repeat(16)
        group = every.view(DTYPES[dtype]).view(2, 2, 64, 1, 16)
        assert torch.equal(bits(self.round_trip(RawCodec(), group)), bits(group))

    def test_body_is_the_memory(self) -> None:
        group = group_of(SMALL, "float32")
        assert self.encode(RawCodec(), group) == group.numpy().tobytes()
