"""lexico-residual: sizes of values that models have, outliers, and values beyond the set."""

from __future__ import annotations

import pytest
import torch

from lexico_codec.codecs import Place, ResidualCodec
from lexico_codec.geometry import DTYPES
from lexico_proto.errors import (
    DictionaryMismatch,
)
from tests.contract.codec_suite import (
    FAR,
    finite,
    group_of,
)
from tests.contract.residual_case import BALANCED, MIXED, NEAR, ROPE, ResidualCase, coded, relative
from tests.support.residual_sets import (
    fitted_to,
    products,
    residual_set,
)


class TestValues(ResidualCase):
    @pytest.mark.parametrize("size", [1e4, 6e4])
    def test_values_of_every_size(self, size: float) -> None:
        group = group_of(MIXED, "float32")
        group = group * (size / float(group.abs().max()))
        for dtype in DTYPES:
            given = group.to(DTYPES[dtype])
            _, out = coded(BALANCED, given, fitted_to(given))
            assert finite(out)
            assert relative(out, given) < 0.1

    def test_error_does_not_depend_on_the_scale_of_set_and_group(self) -> None:
        group = group_of(MIXED, "float32")
        plain = relative(coded(BALANCED, group, fitted_to(group))[1], group)
        for size in (2.0**-20, 2.0**12):
            group = size * group_of(MIXED, "float32")
            _, out = coded(BALANCED, group, fitted_to(group))
            assert relative(out, group) == pytest.approx(plain, rel=0.2)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_values_far_beyond_the_set(self, dtype: str) -> None:
        """Escapes hold a few tokens: errors stay what the step allows. More are refused."""
        dictionary = residual_set(2, 3, 16, gain=0.0)
        for size in (1e3, 1e4, 6e4):
            signs = group_of(MIXED, "float32").sign()
            group = group_of(MIXED, dtype)
            group[:, :, 10:24:2] = (size * signs).to(DTYPES[dtype])[:, :, 10:24:2]
            _, out = coded(BALANCED, group, dictionary)
            off = (out.double() - group.double()).square().mean().sqrt()
            assert float(off) < 0.5 + 0.01 * size * torch.finfo(group.dtype).eps
            with pytest.raises(DictionaryMismatch, match="70 of 70 tokens"):
                coded(BALANCED, (size * signs).to(DTYPES[dtype]), dictionary)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_outlier_channels(self, dtype: str) -> None:
        """Keys as Qwen2's first layers have them, and a few channels of 30 times the usual norm: a
        set that learned them keeps to its step, one that did not is refused.
        """
        plain = group_of((2, 3, 16, 70), "float32")
        _, out = coded(BALANCED, plain, fitted_to(plain, gain=0.0))
        usual = float((out - plain).square().mean().sqrt())
        group = plain.clone()
        norm = float(plain[0, 0].norm(dim=-1).median())
        group[0, 0, :, 1, 11] += 30 * norm  # a mean, which training finds
        group[1, 0, :, 2, 3] *= 30 * norm / 4  # and a deviation
        group = group.to(DTYPES[dtype])
        rounding = torch.finfo(group.dtype).eps * 30 * norm
        with pytest.raises(DictionaryMismatch, match="70 of 70"):
            coded(BALANCED, group, fitted_to(plain, gain=0.0))
        _, out = coded(BALANCED, group, fitted_to(group, gain=0.0))
        off = (out.double() - group.double()).square().mean((2, 4)).sqrt()
        assert bool((off < 40 * usual + rounding).all())
        assert relative(out, group) < 0.1

    def test_constant_keys(self) -> None:
        group = group_of(MIXED, "float32")
        usual = relative(self.round_trip(BALANCED, group, FAR), group)
        group[0, 0] = group[0, 0, :1]
        for dictionary in (fitted_to(group), residual_set(2, 3, 16)):
            _, out = coded(BALANCED, group, dictionary)
            assert bool(out.isfinite().all())
            assert relative(out, group) < 2 * usual

    @pytest.mark.parametrize(("dtype", "largest"), [("float32", 3.4e38), ("bfloat16", 3.3e38)])
    @pytest.mark.parametrize("gain", [0.0, 0.3])
    def test_huge_values(self, dtype: str, largest: float, gain: float) -> None:
        dictionary = residual_set(2, 3, 16, gain=gain)
        signs = group_of(MIXED, "float32").sign()
        for size in (1e6, 1e9, 1e15, 1e30, largest):
            for group in (signs * size, torch.full_like(signs, size)):
                for step in (None, 1e-6):
                    given, some = group.to(DTYPES[dtype]), group_of(MIXED, dtype)
                    with pytest.raises(DictionaryMismatch):
                        coded(ResidualCodec(step=step), given, dictionary, rope=ROPE)
                    some[:, :, 60:] = given[:, :, 60:]
                    _, out = coded(ResidualCodec(step=step), some, dictionary, rope=ROPE)
                    assert bool(out.isfinite().all())
                    lost = (some - out)[:, :, 60:].double().norm() / some[:, :, 60:].double().norm()
                    assert float(lost) < 1e-2

    def test_one_huge_token_leaves_the_others_alone(self) -> None:
        group, dictionary = group_of(MIXED, "float32"), residual_set(2, 3, 16)
        _, before = coded(NEAR, group, dictionary)
        group[:, :, 33] = 1e38
        _, out = coded(NEAR, group, dictionary)
        rest = [t for t in range(70) if t != 33]
        assert float((out - before)[:, :, rest].square().mean().sqrt()) < 0.01

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("step", [None, 1e-6, 1e6])
    def test_quick_products_cost_little(self, dtype: str, step: float | None) -> None:
        """Some machines multiply in bfloat16: 2^-9 of the largest components, and never NaN."""
        group = group_of(MIXED, dtype)
        exact = coded(ResidualCodec(step=step), group, residual_set(2, 3, 16))[1]
        with products(quick=True):
            body, rough = coded(ResidualCodec(step=step), group, residual_set(2, 3, 16))
            assert relative(rough, exact) < 0.02
            for size in (1e4, 1e15, 1e38):
                some = group.clone()
                some[:, :, :9] = min(size, float(torch.finfo(group.dtype).max))
                _, out = coded(ResidualCodec(step=step), some, residual_set(2, 3, 16), rope=ROPE)
                assert finite(out)
        across = torch.full_like(group, float("nan"))
        ResidualCodec(step=step).decode(
            memoryview(body), Place(0, FAR), residual_set(2, 3, 16), across
        )
        assert relative(across, rough) < 0.01, "machines of both kinds read one another's frames"
