"""lexico-residual: tokens that are exact, sinks, any number of tokens, keys before RoPE."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch

from lexico_codec.codecs import LosslessCodec, Place, ResidualCodec
from lexico_codec.geometry import DTYPES, Pairing, Rope
from lexico_codec.rope import rotate, unrotate
from lexico_codec.tensors import FLOAT8
from lexico_proto.errors import (
    DamagedFrame,
    DictionaryMismatch,
)
from lexico_proto.metrics import EXACT_TOKENS, PROCESS
from tests.contract.codec_suite import (
    FAR,
    bits,
    group_of,
)
from tests.contract.residual_case import BALANCED, MIXED, NEAR, ROPE, ResidualCase, coded, relative
from tests.support.residual_sets import (
    residual_set,
    transform_of,
)


class TestTokens(ResidualCase):
    @pytest.mark.parametrize("value", [3e38, float("inf"), float("nan")])
    def test_a_token_beyond_all_levels_is_exact(self, value: float) -> None:
        """Finite, or as a caller may give it who did not check."""
        group = group_of(MIXED, "float32")
        group[:, :, 33, 0] = value
        _, out = coded(ResidualCodec(step=1e-3), group, residual_set(2, 3, 16))
        assert torch.equal(bits(out[:, :, 33]), bits(group[:, :, 33]))
        assert relative(out[:, :, :33], group[:, :, :33]) < 1e-2

    def test_strange_tokens_are_exact(self) -> None:
        """What the set never codes is lost: a token that has much of it is stored as it is."""
        dictionary = residual_set(2, 3, 16)
        transform = transform_of(dictionary)
        quiet = transform.deviations.clone()
        quiet[:, 60:] = 1e-6  # not coded at any gain
        transform = replace(transform, deviations=quiet)
        components = torch.randn(192, 37, generator=torch.Generator().manual_seed(0))
        components *= quiet[0, :, None]
        usual = transform.synthesise(0, components).view(2, 2, 37, 3, 16)
        codec, place = ResidualCodec(step=0.25), Place(0, FAR)
        with mock.patch.object(ResidualCodec, "_transform", return_value=(transform, 0)):
            body, plain = coded(codec, usual, dictionary)
            components[100:, [3, 20]] = 2.0
            outliers = transform.synthesise(0, components).view(2, 2, 37, 3, 16)
            before = PROCESS.counter(EXACT_TOKENS).number
            longer, out = coded(codec, outliers, dictionary)
            assert PROCESS.counter(EXACT_TOKENS).number == before + 2
            assert torch.equal(out[:, :, [3, 20]], outliers[:, :, [3, 20]])
            others = [t for t in range(37) if t not in (3, 20)]
            off = (out - outliers)[:, :, others]
            assert float(off.norm()) <= 1.1 * float((plain - usual)[:, :, others].norm())
            assert len(body) < len(longer) < len(body) + 2 * 4 * 3 * 16 * 4 + 200
            components[100:, :11] = 2.0
            with pytest.raises(DictionaryMismatch, match=r"12 of 37 tokens .* train"):
                codec.encode(
                    transform.synthesise(0, components).view(2, 2, 37, 3, 16), place, dictionary
                )

    @pytest.mark.parametrize("tokens", [1, 2, 3, 4])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_page_of_sinks_loses_nothing(self, tokens: int, dtype: str) -> None:
        group = group_of((2, 3, 16, tokens), dtype)
        body = self.encode(BALANCED, group, 0)
        coded = group.half() if group.dtype in FLOAT8 else group
        alone = LosslessCodec().encode(coded, Place(0, 0), None)
        assert body == len(alone).to_bytes(4, "little") + alone
        assert torch.equal(bits(self.decode(BALANCED, body, group, 0)), bits(group))
        for wrong in (body[:-1], body + b"\0", b""):
            with pytest.raises(DamagedFrame):
                self.decode(BALANCED, wrong, group, 0)

    @pytest.mark.parametrize("tokens", [5, 6, 35, 36, 37, 63, 64, 65, 99])
    @pytest.mark.parametrize("first_token", [0, 1, FAR])
    def test_odd_numbers_of_tokens(self, tokens: int, first_token: int) -> None:
        group = group_of((2, 3, 16, tokens), "float32")
        out = self.round_trip(NEAR, group, first_token)
        sinks = NEAR.sink_tokens(first_token, tokens)
        assert torch.equal(bits(out[:, :, :sinks]), bits(group[:, :, :sinks]))
        self.check_decoded(NEAR, group, out, sinks)

    def test_tokens_do_not_depend_on_their_neighbours(self) -> None:
        group, dictionary = group_of(MIXED, "float32"), residual_set(2, 3, 16)
        _, out = coded(NEAR, group, dictionary)
        _, part = coded(NEAR, group[:, :, 30:39].contiguous(), dictionary, first_token=FAR + 30)
        torch.testing.assert_close(part, out[:, :, 30:39], atol=0.3, rtol=0)
        assert float((part - out[:, :, 30:39]).square().mean().sqrt()) < 0.01  # ties may fall apart

    @pytest.mark.parametrize("pairing", ["half", "interleaved"])
    @pytest.mark.parametrize("pairs", [8, 3])
    @pytest.mark.parametrize("first_token", [0, 2, FAR])
    def test_keys_are_coded_before_rope(
        self, first_token: int, pairs: int, pairing: Pairing
    ) -> None:
        rope = Rope(ROPE.inv_freq[:pairs], pairing, 1.5)
        dictionary, group = residual_set(2, 3, 16), group_of(MIXED, "float32")
        sinks, positions = max(0, 4 - first_token), torch.arange(70) + first_token
        plain = group.clone()
        for layer in range(2):
            plain[layer, 0] = unrotate(group[layer, 0], positions, rope)
        body, out = coded(NEAR, group, dictionary, first_token=first_token, rope=rope)
        same, expected = coded(NEAR, plain, dictionary, first_token=first_token)
        for layer in range(2):
            expected[layer, 0] = rotate(expected[layer, 0], positions, rope)
        error = (out - expected)[:, :, sinks:].square().mean().sqrt()
        assert float(error) < 0.01, "more than ties that fell apart"
        assert torch.equal(bits(out[:, :, :sinks]), bits(group[:, :, :sinks]))
        assert abs(len(body) - len(same)) <= 8
