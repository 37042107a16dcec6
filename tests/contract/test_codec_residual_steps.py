"""lexico-residual: its steps, and what gains, atoms, blocks and runs do to error and bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from lexico_codec.codecs import ResidualCodec
from lexico_codec.codecs.residual.header import Header, bands_of
from lexico_codec.geometry import DTYPES, Geometry
from lexico_codec.sets.transform import GAINS, QUALITIES
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import (
    DictionaryMismatch,
)
from tests.contract.codec_suite import (
    SMALL,
    group_of,
)
from tests.contract.residual_case import BALANCED, MIXED, ResidualCase, coded, prepared, relative
from tests.support.residual_sets import (
    STEPS,
    residual_set,
    residual_tensors,
    set_of,
    transform_of,
)


class TestSteps(ResidualCase):
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
        out, group = out.float(), group.float()
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
