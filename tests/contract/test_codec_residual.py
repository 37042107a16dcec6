"""lexico-residual: within the error that a step allows, and safe against any body or set."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lexico_codec.codecs import Codec, LexicoCodec, LosslessCodec, PackedCodec, Place, ResidualCodec
from lexico_codec.codecs import codec_from_config as configured
from lexico_codec.codecs.residual.header import Header, bands_of, header_bytes
from lexico_codec.geometry import DTYPES, Geometry, Pairing, Rope
from lexico_codec.memory import CacheMemory
from lexico_codec.rope import rotate, unrotate
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.sets.transform import CLASSES_AN_OCTAVE, GAINS, QUALITIES
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import (
    ConfigurationError,
    DamagedFrame,
    DictionaryMismatch,
    InvalidInput,
    LexicoError,
    ShapeMismatch,
    UnknownDictionary,
)
from tests.contract.codec_suite import (
    FAR,
    RANDOM,
    SHAPES,
    SMALL,
    CodecSuite,
    Shape,
    bits,
    group_of,
)
from tests.support.dictionaries import random_set
from tests.support.packed_sets import packed_set
from tests.support.residual_sets import (
    STEPS,
    fitted_to,
    products,
    residual_set,
    residual_tensors,
    set_of,
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
    return body, out


def prepared(group: Tensor) -> Tensor:
    """`[2 layers, D, tokens]` float32, as the transform takes a group without RoPE."""
    return group.float().permute(0, 1, 3, 4, 2).flatten(2, 3).flatten(0, 1)


def relative(out: Tensor, group: Tensor) -> float:
    return float((out.double() - group.double()).norm() / group.double().norm())


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """What a machine with quick products of bfloat16 loses has a test of its own."""
    with products(quick=False):
        yield


class TestResidualCodec(CodecSuite):
    codecs: ClassVar[list[Codec]] = [BALANCED, NEAR, OWN]
    parts_are_exact: ClassVar[bool] = False
    heads = SMALL[1]
    mean = 0.5

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

    # What the suite does with sets of any number of layers

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
    def test_layers_of_the_middle(self, codec: Codec, run: int) -> None:  # type: ignore[override]
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

    # Steps

    def test_error_falls_with_the_step(self) -> None:
        group, dictionary = group_of(MIXED, "float32"), residual_set(2, 3, 16)
        sizes, errors = [], []
        for exponent in range(-11, 4):
            body, out = coded(ResidualCodec(step=2.0**exponent), group, dictionary)
            sizes.append(len(body))
            errors.append(relative(out, group))
        assert sizes == sorted(sizes, reverse=True)
        assert errors == sorted(errors)
        assert errors[0] < 2e-4
        ratios = [b / a for a, b in pairwise(errors[:7])]
        assert all(1.9 < ratio < 2.1 for ratio in ratios), "half the step, half the error"

    def test_quality_takes_the_step_of_the_set(self) -> None:
        group, dictionary = group_of(SMALL), residual_set(2, 3, 16)
        for quality, step in zip(QUALITIES, STEPS, strict=True):
            body, _ = coded(ResidualCodec(quality), group, dictionary)
            assert body == coded(ResidualCodec(step=step), group, dictionary)[0]
            assert body == coded(ResidualCodec("small", step), group, dictionary)[0]

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("step", [1e-300, 1e-40, 1e-12, 1e12, 1e38, 1e300])
    def test_absurd_steps(self, step: float, dtype: str) -> None:
        group, dictionary = group_of(MIXED, dtype), residual_set(2, 3, 16)
        body, out = coded(ResidualCodec(step=step), group, dictionary)
        assert bool(out.isfinite().all())
        assert float(out.abs().max()) < 1e5
        assert len(body) < 12 * group.numel()
        if step == 1e-12:  # levels stay at 2^29: half a thousandth
            assert float((out - group).abs().max()) <= 1.01 * float(group.abs().max()) + 4

    @pytest.mark.parametrize("step", [4.0, 40.0, 400.0])
    def test_where_nothing_is_coded_the_means_come_out(self, step: float) -> None:
        group, dictionary = group_of(MIXED, "float32"), residual_set(2, 3, 16)
        body, out = coded(ResidualCodec(step=1000 * step), group, dictionary)
        means = transform_of(dictionary).means.view(2, 2, 1, 3, 16)
        torch.testing.assert_close(out, means.expand_as(out), atol=1e-5, rtol=1e-5)
        assert len(body) == -(-70 * (1 + 4 + 3 + 6) // 8) + 3 * 4 + 70 * 4

    # Gains, atoms, runs

    def test_an_atom_that_is_not_stored_is_not_taken_off(self) -> None:
        group = group_of(MIXED, "float32")
        tensors = residual_tensors(2, 3, 16)
        tensors["residual.coefficients"].fill_(1e-20)  # of no class at any step
        without = residual_tensors(2, 3, 16, sparsity=0)
        codec = ResidualCodec(step=0.5)
        _, out = coded(codec, group, set_of(tensors))
        _, plain = coded(codec, group, set_of(without))
        assert relative(out, group) <= 1.1 * relative(plain, group)

    def test_tokens_of_more_gain_have_less_error(self) -> None:
        group = group_of(MIXED, "float32")
        tensors = residual_tensors(2, 3, 16, gain=0.0)
        tensors["residual.gains"][:, 0] = 1.2  # of the first component
        dictionary = set_of(tensors)
        transform = transform_of(dictionary)
        gains = transform.gains_of(0, transform.analyse(0, prepared(group)))
        assert len(set(gains.tolist())) >= 8
        _, out = coded(ResidualCodec(step=0.25), group, dictionary)
        error = (out - group).square().sum((0, 1, 3, 4)).sqrt() * torch.exp2(gains.float() / 3)
        assert float(error.max() / error.min()) < 2.5
        assert float(error[gains > 2].mean() / error[gains < -2].mean()) == pytest.approx(
            1, abs=0.2
        )

    def test_gains_are_within_four_bits(self) -> None:
        for bias in (-100.0, 100.0):
            tensors = residual_tensors(2, 3, 16, gain=0.0)
            tensors["residual.gains"][:, -1] = bias
            body, out = coded(BALANCED, group_of(MIXED), set_of(tensors))
            transform = transform_of(set_of(tensors))
            told = bands_of(transform, 0, transform.steps["balanced"])
            header = Header.unpack(memoryview(body), transform, told, 70)
            assert set(header.gains.tolist()) == {GAINS[0] if bias < 0 else GAINS[-1]}
            assert bool(out.isfinite().all())

    @pytest.mark.parametrize("sparsity", [0, 1, 2, 4])
    @pytest.mark.parametrize("joint", [0, 1, 24, 10**6])
    def test_any_number_of_atoms_and_of_joint_components(self, joint: int, sparsity: int) -> None:
        group = group_of(MIXED, "float32")
        dictionary = residual_set(2, 3, 16, joint=joint, sparsity=sparsity)
        _, out = coded(ResidualCodec(step=2.0**-10), group, dictionary)
        assert relative(out, group) < 4e-4

    def test_atoms_of_no_use_are_harmless(self) -> None:
        """One atom needs no bits for its index; three leave bits of theirs unused."""
        group = group_of(MIXED, "float32")
        for atoms in (1, 3):
            dictionary = set_of(residual_tensors(2, 3, 16, atoms=atoms))
            assert relative(coded(ResidualCodec(step=2.0**-10), group, dictionary)[1], group) < 4e-4

    def test_planted_atoms_save_bytes(self) -> None:
        tensors = residual_tensors(1, 2, 32, gain=0.0, mean=0.0, joint=0, atoms=64)
        transform = transform_of(set_of(tensors))
        generator = torch.Generator().manual_seed(3)
        picked = torch.randint(64, (96,), generator=generator)
        components = 0.02 * torch.randn(128, 96, generator=generator)
        components[:32] += 30 * transform.atoms[0][picked].T
        tensors["residual.deviations"][:] = torch.linspace(6, 0.02, 128)
        tensors["residual.remaining"][:] = 0.1
        tensors["residual.coefficients"][:] = 30
        group = transform.synthesise(0, components).view(1, 2, 96, 2, 32)
        group = group.contiguous()
        with_atoms = coded(ResidualCodec(step=0.1), group, set_of(tensors))
        tensors["residual.coefficients"] = torch.zeros(1, 0)
        without = coded(ResidualCodec(step=0.1), group, set_of(tensors))
        assert len(with_atoms[0]) < 0.75 * len(without[0])
        assert max(relative(with_atoms[1], group), relative(without[1], group)) < 0.05

    def test_blocks_of_heads(self) -> None:
        group = group_of(MIXED, "float32")
        dictionary = residual_set(2, 3, 16, blocks=3)
        assert relative(coded(ResidualCodec(step=2.0**-10), group, dictionary)[1], group) < 4e-4

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

    def test_runs_are_coded_alone(self) -> None:
        """Layers of one run do not feel those of another."""
        dictionary = residual_set(6, 3, 16, runs=3)
        codec = ResidualCodec(run_layers=2)
        group = group_of((6, 3, 16, 9), "float32")
        parts = [
            coded(codec, group[at : at + 2].contiguous(), dictionary, first_layer=at)[1]
            for at in (0, 2, 4)
        ]
        assert relative(torch.cat(parts), group) < 0.1
        with pytest.raises(DictionaryMismatch, match="run_layers=2"):
            coded(codec, group, dictionary)
        spec = CacheSpec(bytes(32), Geometry(6, 3, 16), codec, bytes(32))
        assert (spec.group_layers, spec.groups) == (2, 3)

    # Tokens

    @pytest.mark.parametrize(("dtype", "largest"), [("float16", 65504.0), ("bfloat16", 1e30)])
    def test_large_values_stay_finite(self, codec: Codec, dtype: str, largest: float) -> None:
        """A page of nothing else is refused: a set that fits it would be another one."""
        group = torch.full_like(group_of(SMALL, "float32"), largest).to(DTYPES[dtype])
        with pytest.raises(DictionaryMismatch):
            self.encode(codec, group, FAR)

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
            longer, out = coded(codec, outliers, dictionary)
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
        alone = LosslessCodec().encode(group, Place(0, 0), None)
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

    # Values that models have

    @pytest.mark.parametrize("size", [1e4, 6e4])
    def test_values_of_every_size(self, size: float) -> None:
        group = group_of(MIXED, "float32")
        group = group * (size / float(group.abs().max()))
        for dtype in DTYPES:
            given = group.to(DTYPES[dtype])
            _, out = coded(BALANCED, given, fitted_to(given))
            assert bool(out.isfinite().all())
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
                assert bool(out.isfinite().all())
        across = torch.full_like(group, float("nan"))
        ResidualCodec(step=step).decode(
            memoryview(body), Place(0, FAR), residual_set(2, 3, 16), across
        )
        assert relative(across, rough) < 0.01, "machines of both kinds read one another's frames"

    # Configuration and sets

    @pytest.mark.parametrize(
        "config",
        [
            '{"quality":"best"}',
            '{"quality":1}',
            '{"quality":null}',
            '{"step":0}',
            '{"step":-1}',
            '{"step":"1"}',
            '{"step":true}',
            '{"step":NaN}',
            '{"step":Infinity}',
            '{"run_layers":-1}',
            '{"run_layers":1.0}',
            '{"run_layers":true}',
            '{"run_layers":null}',
            '{"sparsity":8}',
        ],
    )
    def test_configurations_that_cannot_be(self, config: str) -> None:
        with pytest.raises(ConfigurationError, match="lexico-residual"):
            configured("lexico-residual", config)

    def test_layers_must_divide_into_runs(self) -> None:
        ResidualCodec(run_layers=3).check_geometry(Geometry(6, 1, 16))
        for run_layers in (4, 12):
            with pytest.raises(ConfigurationError, match="6 layers"):
                ResidualCodec(run_layers=run_layers).check_geometry(Geometry(6, 1, 16))

    def test_groups_are_runs(self) -> None:
        geometry = Geometry(6, 1, 16)
        for run_layers, groups in ((0, 1), (6, 1), (3, 2), (1, 6)):
            codec = ResidualCodec(run_layers=run_layers)
            spec = CacheSpec(bytes(32), geometry, codec, bytes(32))
            assert spec.groups == groups
            assert replace(spec, group_layers=spec.group_layers) == spec
            with pytest.raises(ShapeMismatch, match="layers together; leave it out"):
                CacheSpec(bytes(32), geometry, codec, bytes(32), group_layers=2)

    def test_sets_of_the_wrong_kind(self) -> None:
        group = group_of(SMALL)
        body = memoryview(self.encode(BALANCED, group))
        for other in (random_set(2, 16), packed_set(2, 16)):
            with pytest.raises(DictionaryMismatch, match="train --codec lexico-residual"):
                BALANCED.encode(group, Place(0, 0), other)
            with pytest.raises(DictionaryMismatch, match="train --codec lexico-residual"):
                BALANCED.decode(body, Place(0, 0), other, torch.empty_like(group))
        for codec in (LexicoCodec(), PackedCodec()):
            with pytest.raises(LexicoError, match="dictionar"):
                codec.encode(group, Place(0, 0), residual_set(2, 3, 16))

    def test_no_set(self) -> None:
        group = group_of(SMALL)
        with pytest.raises(UnknownDictionary):
            BALANCED.encode(group, Place(0, 0), None)
        with pytest.raises(UnknownDictionary):
            BALANCED.decode(memoryview(b""), Place(0, 0), None, group)

    @pytest.mark.parametrize(
        ("made", "advice"),
        [
            ((2, 3, 17), "3 KV heads of 17"),
            ((2, 2, 16), "2 KV heads of 16"),
            ((2, 6, 8), "6 KV heads of 8"),
            ((1, 3, 16), "run_layers=1"),
            ((3, 3, 16), "run_layers=3"),
            ((4, 3, 16, 4), "run_layers=1"),
        ],
        ids=str,
    )
    def test_set_of_another_model(self, made: tuple[int, ...], advice: str) -> None:
        group = group_of(SMALL)
        body = memoryview(self.encode(BALANCED, group))
        with pytest.raises(DictionaryMismatch, match=advice):
            BALANCED.encode(group, Place(0, 0), residual_set(*made))
        with pytest.raises(DictionaryMismatch, match=advice):
            BALANCED.decode(body, Place(0, 0), residual_set(*made), torch.empty_like(group))

    @pytest.mark.parametrize("first_layer", [1, 4, 6, 1000])
    def test_layers_that_are_no_run(self, first_layer: int) -> None:
        group, dictionary = group_of(SMALL), residual_set(4, 3, 16, runs=2)
        with pytest.raises(DictionaryMismatch, match="runs of 2 layers"):
            BALANCED.encode(group, Place(first_layer, 0), dictionary)

    def test_a_shard_of_the_heads_is_refused(self) -> None:
        """As many heads as the set has, but others: its bases would be those of the first."""
        group = group_of(SMALL)
        dictionary = self.dictionary(group.shape[0], group.shape[4])
        body = memoryview(self.encode(BALANCED, group))
        for first in (1, group.shape[3]):
            shard = Place(0, FAR, first_head=first)
            with pytest.raises(DictionaryMismatch, match="all KV heads together"):
                BALANCED.encode(group, shard, dictionary)
            with pytest.raises(DictionaryMismatch, match="all KV heads together"):
                BALANCED.decode(body, shard, dictionary, torch.empty_like(group))

    def test_matrices_without_inverse_are_named(self) -> None:
        """No training makes such a set, but anyone may send one."""
        for name in ("bases", "cross"):
            tensors = residual_tensors(2, 3, 16)
            tensors[f"residual.{name}"].zero_()
            dictionary = set_of(tensors)
            with pytest.raises(InvalidInput, match="without an inverse"):
                BALANCED.encode(group_of(SMALL), Place(0, FAR), dictionary)

    def test_extreme_numbers_of_a_set_do_no_harm(self) -> None:
        group = group_of(SMALL, "float32")
        for name, number in (
            ("scales", 3e38),
            ("scales", 1e-38),
            ("means", 3e38),
            ("cross_scales", 3e38),
            ("gains", 3e38),
            ("coefficients", 1e-45),
            ("coefficients", 3e38),
            ("remaining", 3e38),
            ("remaining", 1e-45),
            ("deviations", 1e-45),
            ("deviations", 3e38),
            ("points", 3e38),
            ("steps", 1e-45),
            ("steps", 3e38),
        ):
            tensors = residual_tensors(2, 3, 16)
            tensors[f"residual.{name}"].fill_(number)
            try:
                _, out = coded(BALANCED, group, set_of(tensors))
            except LexicoError:
                continue
            assert bool(out.isfinite().all()), name

    # Bodies that no encoder made

    def test_each_check_of_a_body(self) -> None:
        group = group_of((2, 3, 16, 9))
        sound = self.encode(BALANCED, group, FAR)
        self.decode(BALANCED, sound, group, FAR)
        transform = transform_of(self.dictionary(2, 16))
        told = bands_of(transform, 0, transform.steps["balanced"])
        bits = 9 * (1 + 4 + 3) + 3 * told
        rows = -(-(bits + 9 * 6) // 8)
        assert rows == header_bytes(transform, told, 9)
        assert (bits + 9 * 6) % 8, "there are bits behind the last index"

        def altered(at: int, *values: int) -> bytes:
            body = bytearray(sound)
            body[at : at + len(values)] = bytes(values)
            return bytes(body)

        assert np.frombuffer(sound, "<u4", 1, offset=rows)[0] == len(sound) - rows - 4
        bad = {
            "behind the last index": [altered(rows - 1, sound[rows - 1] | 0x80)],
            "outside the atoms": [altered(rows - 3, 0xFF, 0xFF)],
            "come first": [sound[: rows - 1], b""],
            "lengths": [sound[:-2], sound + b"\0\0", altered(rows, 0, 0, 0, 0)],
            "its states": [sound[: rows + 8]],
        }
        for message, bodies in bad.items():
            for body in bodies:
                with pytest.raises(DamagedFrame, match=message):
                    self.decode(BALANCED, body, group, FAR)

    @RANDOM
    @given(data=st.data())
    def test_damage_of_several_blocks(self, data: st.DataObject) -> None:
        codec = data.draw(st.sampled_from([BALANCED, ResidualCodec(step=8.0)]))
        first_token = data.draw(st.sampled_from([0, FAR]))
        group = group_of(MIXED)
        body = bytearray(self.encode(codec, group, first_token))
        kind = data.draw(st.sampled_from(["flip", "cut", "noise", "fill"]))
        at = data.draw(st.integers(0, len(body) - 1))
        if kind == "flip":
            for _ in range(data.draw(st.integers(1, 4))):
                body[at] ^= 1 << data.draw(st.integers(0, 7))
                at = data.draw(st.integers(0, len(body) - 1))
        elif kind == "cut":
            del body[at : at + data.draw(st.integers(1, 40))]
        elif kind == "noise":
            some = data.draw(st.binary(min_size=1, max_size=64))
            body[at : at + len(some)] = some
        else:
            body[at:] = bytes([data.draw(st.integers(0, 255))]) * (len(body) - at)
        self.check_survives(codec, body, group, first_token)

    def test_a_body_makes_no_large_memory(self) -> None:
        """Whatever it says, a body costs what its group and transform do."""
        group = group_of(SMALL)
        sound = self.encode(BALANCED, group, FAR)
        at = len(sound) - len(sound) % 4
        tracemalloc.start()
        for body in (bytes([255]) * len(sound), sound[:4] + b"\xff" * (at - 4), b"\xff" * 100):
            self.check_survives(BALANCED, body, group, FAR)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20

    def test_body_of_another_step(self) -> None:
        """The namespace keeps them apart; if not, nothing breaks."""
        group = group_of(MIXED)
        for step in (0.01, 3.0, 1e9):
            body = self.encode(ResidualCodec(step=step), group, FAR)
            self.check_survives(BALANCED, body, group, FAR)
