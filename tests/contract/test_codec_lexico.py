"""lexico: the paper's sizes, the errors that OMP and FP8 allow, nothing else."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from lexico_codec.codecs import Codec, LexicoCodec, Place
from lexico_codec.codecs.codec import SINK_TOKENS
from lexico_codec.geometry import DTYPES
from lexico_codec.kernels.pursuit import naive
from lexico_codec.sets.atom_tensors import PARTS
from lexico_codec.sets.dictionary import AtomSet, DictionarySet
from lexico_proto.errors import DamagedFrame, DictionaryMismatch, InvalidInput, UnknownDictionary
from tests.contract.codec_suite import FAR, SHAPES, SMALL, CodecSuite, Shape, group_of
from tests.support.dictionaries import random_set, set_info, unit_rows

FIXED, TOLERANT = LexicoCodec(), LexicoCodec(sparsity=12, tolerance=0.6)
FP8 = 2.0**-4
"""Largest relative error of a coefficient."""


def tables(group: Tensor, dictionary: AtomSet) -> list[tuple[Tensor, Tensor]]:
    """(vectors `[tokens * heads, dim]` float32, atoms) of keys, then values, of each layer."""
    dim = group.shape[-1]
    return [
        (group[layer, i].reshape(-1, dim).float(), dictionary.atoms(layer, part))
        for layer in range(group.shape[0])
        for i, part in enumerate(PARTS)
    ]


def parse(body: bytes, vectors: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts, exponents, indices and coefficients, as docs/format.md lays them out."""
    counts = np.frombuffer(body, np.uint8, vectors)
    total = int(counts.sum())
    assert len(body) == 2 * vectors + 3 * total
    return (
        counts,
        np.frombuffer(body, np.int8, vectors, offset=vectors),
        np.frombuffer(body, "<i2", total, offset=2 * vectors),
        np.frombuffer(body, np.uint8, total, offset=2 * vectors + 2 * total),
    )


class TestLexicoCodec(CodecSuite):
    codecs: ClassVar[list[Codec]] = [FIXED, TOLERANT]

    @pytest.fixture(params=codecs, ids=["fixed", "tolerant"])
    def codec(self, request: pytest.FixtureRequest) -> Codec:
        codec: LexicoCodec = request.param
        return codec

    def has_fixed_size(self, codec: Codec) -> bool:
        return codec == FIXED

    def check_decoded(self, codec: Codec, group: Tensor, out: Tensor, sinks: int) -> None:
        """The error of each vector is OMP's plus at most what FP8 adds to its coefficients."""
        assert isinstance(codec, LexicoCodec)
        if group.shape[2] == sinks:
            return
        rounding = 0.0 if group.dtype == torch.float32 else torch.finfo(group.dtype).eps
        dictionary = random_set(group.shape[0], group.shape[-1])
        got = tables(out[:, :, sinks:], dictionary)
        for (x, atoms), (decoded, _) in zip(
            tables(group[:, :, sinks:], dictionary), got, strict=True
        ):
            codes = naive.omp(x, atoms, codec.sparsity, codec.tolerance)
            exact = naive.reconstruct(codes, atoms)
            slack = FP8 * codes.coefficients.abs().sum(1) + rounding * x.norm(dim=1) + 1e-4
            assert bool(((decoded - exact).norm(dim=1) <= slack).all())

    @pytest.mark.parametrize("shape", SHAPES)
    def test_layers_of_the_middle(self, codec: Codec, shape: Shape) -> None:  # type: ignore[override]
        """A group that starts at layer 2 uses the dictionaries of layer 2."""
        layers, _, dim, _ = shape
        group = group_of(shape)
        body = self.encode(codec, group, FAR, 2)
        moved = random_set(layers, dim, seed=4)  # random_set's layer i has the seeds 2 i, 2 i + 1
        assert body == bytes(codec.encode(group, Place(0, FAR), moved))

    # Sizes

    @pytest.mark.parametrize("sparsity", [1, 3, 8, 15])
    @pytest.mark.parametrize("first_token", [0, 2, FAR])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_paper_accounting(self, shape: Shape, first_token: int, sparsity: int) -> None:
        """3 s + 2 bytes a vector, and the sinks as they are."""
        layers, heads, dim, tokens = shape
        body = self.encode(LexicoCodec(sparsity=sparsity), group_of(shape), first_token)
        sinks = max(0, min(SINK_TOKENS - first_token, tokens))
        exact = layers * 2 * sinks * heads * dim * 2
        vectors = layers * 2 * (tokens - sinks) * heads
        assert len(body) == exact + vectors * (3 * sparsity + 2)

    def test_zero_vectors_take_two_bytes(self) -> None:
        group = group_of(SMALL)
        group[0, 0, 1] = 0.0  # 3 heads
        counts, _, indices, _ = parse(self.encode(FIXED, group, FAR), 60)
        assert sorted(set(counts.tolist())) == [0, 8]
        assert (int((counts == 0).sum()), len(indices)) == (3, 57 * 8)

    # Errors

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("sparsity", [2, 8])
    @pytest.mark.parametrize("shape", [(2, 3, 63, 40), (1, 2, 128, 60)], ids=str)
    def test_error_is_about_that_of_exact_coefficients(
        self, shape: Shape, sparsity: int, dtype: str
    ) -> None:
        codec, group = LexicoCodec(sparsity=sparsity), group_of(shape, dtype)
        out = self.round_trip(codec, group, FAR)
        dictionary = random_set(shape[0], shape[2])
        got = tables(out, dictionary)
        for (x, atoms), (decoded, _) in zip(tables(group, dictionary), got, strict=True):
            exact = naive.reconstruct(naive.omp(x, atoms, sparsity), atoms)
            assert (decoded - x).norm() <= 1.02 * (exact - x).norm()

    @pytest.mark.parametrize("delta", [0.2, 0.5, 0.8])
    @pytest.mark.parametrize("shape", [(2, 3, 16, 30), (1, 2, 63, 20)], ids=str)
    def test_tolerance_is_met_or_every_atom_spent(self, shape: Shape, delta: float) -> None:
        codec, group = LexicoCodec(sparsity=14, tolerance=delta), group_of(shape, "float32")
        dictionary = random_set(shape[0], shape[2])
        body = self.encode(codec, group, FAR)
        out = self.decode(codec, body, group, FAR)
        x = torch.cat([vectors for vectors, _ in tables(group, dictionary)])
        decoded = torch.cat([vectors for vectors, _ in tables(out, dictionary)])
        counts, exponents, _, fp8 = parse(body, len(x))
        of = np.repeat(np.arange(len(x)), counts)
        values = torch.from_numpy(fp8.copy()).view(torch.float8_e4m3fn).double().abs()
        values *= 2.0 ** -torch.from_numpy(exponents[of].astype(np.float64))
        sums = torch.zeros(len(x), dtype=torch.float64).index_add_(0, torch.from_numpy(of), values)
        error = (decoded - x).norm(dim=1).double()
        spent = torch.from_numpy(counts == 14)
        met = error <= delta * x.norm(dim=1) + FP8 / (1 - FP8) * sums + 1e-5
        assert bool((met | spent).all())
        assert bool(met.any())

    def test_counts_vary_with_the_vector(self) -> None:
        codec, group = LexicoCodec(sparsity=8, tolerance=0.5), group_of((1, 1, 32, 9), "float32")
        atoms = random_set(1, 32).atoms(0, "key")
        group[0, 0, :, 0] = torch.stack(
            [sum((atoms[7 * i] * 0.9**i for i in range(n + 1)), torch.zeros(32)) for n in range(9)]
        )
        group[0, 0, 4] = 0.0
        body = self.encode(codec, group, FAR)
        counts = parse(body, 18)[0]
        assert counts[0] == 1
        assert counts[4] == 0
        assert len(set(counts[:9].tolist())) >= 4
        for i in range(18):  # a vector's code does not depend on those beside it
            alone = group[:, i // 9, i % 9 : i % 9 + 1][:, None]
            pair = torch.cat([alone, alone], 1).contiguous()
            assert parse(self.encode(codec, pair, FAR), 2)[0][i // 9] == counts[i]
        self.check_decoded(codec, group, self.decode(codec, body, group, FAR), 0)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("codec", [LexicoCodec(8), LexicoCodec(32, 0.05)], ids=str)
    def test_outlier_keys_do_not_saturate(self, codec: LexicoCodec, dtype: str) -> None:
        """Keys as Qwen2's first layers have them: a channel at 358 and a mean far from zero."""
        group = group_of((1, 2, 64, 50), "float32")
        mean = torch.full((64,), 60.0)
        mean[11] = 358.0
        group[:, 0] += mean
        group = group.to(DTYPES[dtype])
        atoms = unit_rows(96, 64, 0)
        atoms[5] = mean / mean.norm()  # training finds this direction at once
        dictionary = AtomSet.build([(atoms, atoms)], set_info())
        out = torch.full_like(group, float("nan"))
        body = codec.encode(group, Place(0, FAR), dictionary)
        codec.decode(memoryview(body), Place(0, FAR), dictionary, out)
        x, decoded = tables(group, dictionary)[0][0], tables(out, dictionary)[0][0]
        codes = naive.omp(x, dictionary.atoms(0, "key"), codec.sparsity, codec.tolerance)
        assert float(codes.coefficients.abs().max()) > 448, "nothing to saturate in this test"
        relative = (decoded - x).norm(dim=1) / x.norm(dim=1)
        exact = naive.reconstruct(codes, dictionary.atoms(0, "key"))
        unquantised = (exact - x).norm(dim=1) / x.norm(dim=1)
        rounding = torch.finfo(group.dtype).eps / 2
        assert bool((relative <= unquantised + FP8 * 1.1 + rounding).all())
        assert float((decoded[:, 11] / x[:, 11]).mean()) == pytest.approx(1, abs=0.05)

    @pytest.mark.parametrize("power", [-12, -4, 0, 4, 11])
    def test_error_does_not_depend_on_the_scale(self, power: int) -> None:
        group = group_of(SMALL, "float32")
        plain = self.round_trip(FIXED, group, FAR)
        scaled = self.round_trip(FIXED, group * 2.0**power, FAR)
        torch.testing.assert_close(scaled / 2.0**power, plain, rtol=1e-6, atol=1e-6)

    # Dictionaries

    @pytest.mark.parametrize(
        "dictionary",
        [random_set(2, 17), random_set(2, 15), random_set(1, 16)],
        ids=["wider", "narrower", "shallower"],
    )
    def test_dictionary_of_another_shape(self, dictionary: DictionarySet) -> None:
        group = group_of(SMALL)
        body = self.encode(FIXED, group)
        with pytest.raises(DictionaryMismatch, match="head_dim 16"):
            FIXED.encode(group, Place(0, 0), dictionary)
        with pytest.raises(DictionaryMismatch, match="head_dim 16"):
            FIXED.decode(memoryview(body), Place(0, 0), dictionary, torch.empty_like(group))

    def test_layers_beyond_the_set(self) -> None:
        with pytest.raises(DictionaryMismatch, match="layers up to 6"):
            FIXED.encode(group_of(SMALL), Place(4, 0), random_set(5, 16))

    def test_no_dictionary(self) -> None:
        group = group_of(SMALL)
        with pytest.raises(UnknownDictionary):
            FIXED.encode(group, Place(0, 0), None)
        with pytest.raises(UnknownDictionary):
            FIXED.decode(memoryview(self.encode(FIXED, group)), Place(0, 0), None, group)

    def test_more_atoms_than_the_space_has_dimensions(self) -> None:
        with pytest.raises(InvalidInput, match="sparsity"):
            self.encode(LexicoCodec(sparsity=17), group_of(SMALL), FAR)

    # Bodies that no encoder made

    def test_each_check_of_a_body(self) -> None:
        group = group_of(SMALL)
        sound = self.encode(FIXED, group, FAR)
        vectors = 60
        exponent, index, coefficient = vectors, 2 * vectors, 2 * vectors + 2 * 8 * vectors

        def altered(at: int, *values: int) -> bytes:
            body = bytearray(sound)
            body[at : at + len(values)] = bytes(values)
            return bytes(body)

        bad = {
            "do not add up": [altered(0, 7), altered(0, 9), altered(0, 9, 7), altered(5, 255)],
            "no float32": [altered(exponent, 0x80), altered(exponent + 59, 0x87)],
            "negative index": [altered(index, 0xFF, 0xFF), altered(index + 1, 0x80)],
            "beyond a dictionary": [altered(index, 96, 0), altered(coefficient - 2, 95, 0)],
            "no number": [altered(coefficient, 0x7F), altered(len(sound) - 1, 0xFF)],
        }
        for message, bodies in bad.items():
            for body in bodies:
                with pytest.raises(DamagedFrame, match=message):
                    self.decode(FIXED, body, group, FAR)
        for body in (altered(index, 95, 0), altered(exponent, 0x88), altered(coefficient, 0x7E)):
            assert bool(self.decode(FIXED, body, group, FAR).isfinite().all())

    def test_body_of_more_atoms_than_configured(self) -> None:
        """Frames of s = 8 are not read by a spec of s = 3: the namespace keeps them apart too."""
        group = group_of(SMALL)
        with pytest.raises(DamagedFrame, match="add up"):
            self.decode(LexicoCodec(sparsity=3), self.encode(FIXED, group, FAR), group, FAR)

    def test_fp16_sum_of_atoms_is_clamped(self) -> None:
        """Atoms add up to more than 65504 in some component."""
        signs = group_of((1, 4, 64, 30), "float32").sign()
        group = (65504 * signs).half()
        (x, atoms), _ = tables(group, random_set(1, 64))
        exact = naive.reconstruct(naive.omp(x, atoms, 8), atoms)
        assert float(exact.abs().max()) > 65520, "nothing overflows in this test"
        out = self.round_trip(FIXED, group, FAR)
        assert float(out.abs().max()) == 65504
