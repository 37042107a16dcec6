"""lexico-packed: small, within the error that rounding allows, and safe against any body."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from lexico_codec.codecs import Codec, LexicoCodec, PackedCodec, Place, codec_from_config
from lexico_codec.codecs.packed.codec import allocate
from lexico_codec.codecs.packed.packed_codes import MOST_ATOMS
from lexico_codec.codecs.packed.subsets import subset_code
from lexico_codec.geometry import DTYPES, Geometry, Rope
from lexico_codec.kernels.pursuit import naive
from lexico_codec.rope import rotate, unrotate
from lexico_codec.sets.dictionary import DictionarySet
from lexico_proto.errors import (
    ConfigurationError,
    DamagedFrame,
    DictionaryMismatch,
    UnknownDictionary,
)
from tests.contract.codec_suite import FAR, SHAPES, SMALL, CodecSuite, Shape, bits, group_of
from tests.support.dictionaries import random_set
from tests.support.packed_sets import packed_set

FIXED, TOLERANT = PackedCodec(), PackedCodec(sparsity=12, tolerance=0.6, bits=5)
ROPE = Rope(tuple(10000 ** (-i / 8) for i in range(8)), "half", 1.5)


def tables_of(group: Tensor, dictionary: DictionarySet) -> list[tuple[Tensor, Tensor]]:
    """(vectors without their means `[tokens * heads, dim]`, atoms) of keys, then values."""
    layers, heads, dim = group.shape[0], group.shape[3], group.shape[4]
    means = dictionary.means(0, layers)[:, :heads]
    return [
        (
            (group[layer, i].float() - means[2 * layer + i]).reshape(-1, dim),
            dictionary.atoms(layer, part),
        )
        for layer in range(layers)
        for i, part in enumerate(("key", "value"))
    ]


def encoded(
    codec: PackedCodec, group: Tensor, dictionary: DictionarySet, **place: Any
) -> tuple[bytes, Tensor]:
    """The body, and what it is decoded to."""
    at = Place(**{"first_layer": 0, "first_token": FAR, **place})
    body = bytes(codec.encode(group, at, dictionary))
    out = torch.full_like(group, float("nan"))
    codec.decode(memoryview(body), at, dictionary, out)
    return body, out


def bits_a_vector(size: int, atoms: int, per_coefficient: int, scale: int) -> int:
    code = subset_code(size, atoms)
    return code.rank_bits + atoms * (code.low_bits + per_coefficient) + scale


class TestPackedCodec(CodecSuite):
    codecs: ClassVar[list[Codec]] = [FIXED, TOLERANT]
    mean = 0.5

    @pytest.fixture(params=codecs, ids=["fixed", "tolerant"])
    def codec(self, request: pytest.FixtureRequest) -> Codec:
        codec: PackedCodec = request.param
        return codec

    def dictionary(self, layers: int, head_dim: int) -> DictionarySet:
        return packed_set(layers, head_dim, mean=self.mean)

    def has_fixed_size(self, codec: Codec) -> bool:
        return False

    def check_decoded(self, codec: Codec, group: Tensor, out: Tensor, sinks: int) -> None:
        """The error of each vector is OMP's and that of half a step a coefficient."""
        assert isinstance(codec, PackedCodec)
        if group.shape[2] == sinks:
            return
        rounding = 0.0 if group.dtype == torch.float32 else torch.finfo(group.dtype).eps
        dictionary = self.dictionary(group.shape[0], group.shape[-1])
        got = tables_of(out[:, :, sinks:], dictionary)
        for (x, atoms), (decoded, _) in zip(
            tables_of(group[:, :, sinks:], dictionary), got, strict=True
        ):
            codes = naive.omp(x, atoms, codec.sparsity, codec.tolerance)
            exact = (naive.reconstruct(codes, atoms) - x).norm(dim=1)
            step = codes.coefficients.abs().amax(1) * 2**0.5 / (1 << (codec.bits - 1))
            added = 0.6 * step * codec.sparsity**0.5
            slack = rounding * (x.norm(dim=1) + 8) + 1e-3
            assert bool(((decoded - x).norm(dim=1) <= (exact**2 + added**2).sqrt() + slack).all())

    def test_layers_of_the_middle(self, codec: Codec) -> None:  # type: ignore[override]
        """A group that starts at layer 2 uses the dictionaries and means of layer 2."""
        group, dictionary = group_of(SMALL), packed_set(4, 16)
        body = bytes(codec.encode(group, Place(2, FAR), dictionary))
        assert body != bytes(codec.encode(group, Place(0, FAR), dictionary))
        whole = torch.cat([torch.zeros_like(group), group])
        together, out = encoded(codec, whole, dictionary)  # type: ignore[arg-type]
        alone = torch.full_like(group, float("nan"))
        codec.decode(memoryview(body), Place(2, FAR), dictionary, alone)
        assert torch.equal(bits(out[2:]), bits(alone))
        assert len(together) > len(body)

    def test_zeros(self, codec: Codec) -> None:
        self.mean = 0.0
        super().test_zeros(codec)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_subnormal_values(self, codec: Codec, dtype: str) -> None:
        self.mean = 0.0
        super().test_subnormal_values(codec, dtype)

    # Sizes

    @pytest.mark.parametrize("per", [3, 4, 6])
    @pytest.mark.parametrize("sparsity", [1, 3, 8, 15, 40])
    @pytest.mark.parametrize("shape", [(2, 3, 63, 40), (1, 1, 128, 9)], ids=str)
    def test_every_bit_is_accounted_for(self, shape: Shape, sparsity: int, per: int) -> None:
        layers, heads, dim, tokens = shape
        codec, dictionary = PackedCodec(sparsity, bits=per), packed_set(layers, dim)
        body, _ = encoded(codec, group_of(shape), dictionary)
        vectors, tables = tokens * heads, 2 * layers
        chosen = list(body[3 : 4 * tables : 4])  # bits of each table's coefficients
        assert min(chosen) >= per
        least, most = (
            vectors
            * sum(bits_a_vector(96 - t % 2, sparsity, chosen[t], scale) for t in range(tables))
            for scale in (0, 5)
        )
        header = 4 * tables
        assert least / 8 + header <= len(body) <= most / 8 + header + 5

    def test_tables_that_rounding_would_hurt_have_finer_coefficients(self) -> None:
        """One atom has nearly all of each key, as in a model's first layer."""
        dictionary = packed_set(1, 64, atoms=512)
        group = group_of((1, 2, 64, 50), seed=77)
        group[:, 0] += 100 * dictionary.atoms(0, "key")[7]
        body, out = encoded(PackedCodec(bits=3), group, dictionary)
        assert body[3] > body[7]
        pairs = zip(tables_of(group, dictionary), tables_of(out, dictionary), strict=True)
        for (x, atoms), (decoded, _) in pairs:
            exact = naive.reconstruct(naive.omp(x, atoms, 8), atoms)
            assert float((decoded - x).square().sum() / (exact - x).square().sum()) < 1.15

    def test_a_third_of_the_bytes_of_codec_lexico(self) -> None:
        group = group_of((2, 3, 64, 64))
        packed, _ = encoded(PackedCodec(), group, packed_set(2, 64, atoms=1024))
        plain = LexicoCodec().encode(group, Place(0, FAR), random_set(2, 64))
        assert len(packed) < 0.51 * len(plain)  # 13.0 bytes a vector, not 26

    def test_vectors_that_are_their_mean_need_no_atoms(self) -> None:
        dictionary = packed_set(1, 16)
        group = dictionary.means(0, 1)[:, :3].view(1, 2, 1, 3, 16).repeat(1, 1, 9, 1, 1).clone()
        body, out = encoded(FIXED, group, dictionary)
        assert len(body) == 4 * 2
        torch.testing.assert_close(out, group)
        group[0, 0, 4, 1] += 1
        more, out = encoded(FIXED, group, dictionary)
        assert len(more) > len(body)
        torch.testing.assert_close(out[:, 1], group[:, 1])

    # Errors

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("per", "most"), [(3, 1.16), (4, 1.04), (6, 1.004)])
    def test_error_is_about_that_of_exact_coefficients(
        self, per: int, most: float, dtype: str
    ) -> None:
        shape = (2, 3, 63, 40)
        group, dictionary = group_of(shape, dtype, seed=77), packed_set(2, 63)
        _, out = encoded(PackedCodec(bits=per), group, dictionary)
        pairs = zip(tables_of(group, dictionary), tables_of(out, dictionary), strict=True)
        for (x, atoms), (decoded, _) in pairs:
            exact = naive.reconstruct(naive.omp(x, atoms, 8), atoms)
            assert (decoded - x).norm() <= most * (exact - x).norm()

    @pytest.mark.parametrize("delta", [0.3, 0.6])
    def test_tolerance_saves_atoms(self, delta: float) -> None:
        group, dictionary = group_of((2, 3, 16, 30), "float32"), packed_set(2, 16)
        all_atoms, _ = encoded(PackedCodec(14, bits=6), group, dictionary)
        body, out = encoded(PackedCodec(14, delta, bits=6), group, dictionary)
        assert len(body) < len(all_atoms)
        pairs = zip(tables_of(group, dictionary), tables_of(out, dictionary), strict=True)
        for (x, _), (decoded, _) in pairs:
            assert float((decoded - x).norm() / x.norm()) <= delta

    @pytest.mark.parametrize("first_token", [0, FAR])
    def test_keys_are_coded_before_rope(self, first_token: int) -> None:
        dictionary = packed_set(2, 16)
        group = group_of((2, 3, 16, 9), "float32")
        sinks, positions = max(0, 4 - first_token), torch.arange(9) + first_token
        plain = group.clone()
        for layer in range(2):
            plain[layer, 0] = unrotate(group[layer, 0], positions, ROPE)
        body, out = encoded(FIXED, group, dictionary, first_token=first_token, rope=ROPE)
        same, expected = encoded(FIXED, plain, dictionary, first_token=first_token)
        for layer in range(2):
            expected[layer, 0] = rotate(expected[layer, 0], positions, ROPE)
        torch.testing.assert_close(out[:, :, sinks:], expected[:, :, sinks:])
        assert torch.equal(bits(out[:, :, :sinks]), bits(group[:, :, :sinks]))
        exact = 2 * 2 * sinks * 3 * 16 * 4
        assert len(body) == len(same)
        assert sum(a != b for a, b in zip(body[exact:], same[exact:], strict=True)) < 3

    def test_heads_of_a_shard_have_their_own_means(self) -> None:
        group, dictionary = group_of((1, 4, 16, 9), "float32"), packed_set(1, 16)
        _, whole = encoded(FIXED, group, dictionary)
        part = group[:, :, :, 2:].contiguous()
        _, out = encoded(FIXED, part, dictionary, first_head=2)
        torch.testing.assert_close(out, whole[:, :, :, 2:])
        with pytest.raises(DictionaryMismatch, match="heads up to 9"):
            FIXED.encode(part, Place(0, FAR, first_head=7), dictionary)

    # Allocation

    def test_atoms_go_where_the_error_falls(self) -> None:
        falls = (0.01, 0.2, 0.2, 3.0)
        dictionary = packed_set(2, 63, falls=falls)
        group = group_of((2, 3, 63, 40), seed=77)
        body, out = encoded(FIXED, group, dictionary)
        pairs = zip(tables_of(group, dictionary), tables_of(out, dictionary), strict=True)
        errors = [float((decoded - x).norm() / x.norm()) for (x, _), (decoded, _) in pairs]
        assert errors[0] > max(errors[1:3])
        assert errors[3] > max(errors[1:3])
        for layer in (0, 1):  # a frame of one layer is coded as it is among all
            part, some = encoded(FIXED, group[[layer]], dictionary, first_layer=layer)
            assert torch.equal(bits(some[0]), bits(out[layer]))
            assert len(part) < len(body)

    def test_tables_without_atoms_are_their_means(self) -> None:
        dictionary = packed_set(2, 63, falls=(0.0, 0.0, 0.5, 0.5))
        group = group_of((1, 3, 63, 40))
        body, out = encoded(PackedCodec(1), group, dictionary)
        assert len(body) == 4 * 2
        means = dictionary.means(0, 1)[None, :, None, :3].expand_as(group)
        torch.testing.assert_close(out, means.half())

    def test_allocation(self) -> None:
        assert allocate(None, [64, 5], 8) == (8, 5)
        halves = [2.0**-n for n in range(65)]
        assert allocate([halves, halves], [64, 64], 8) == (8, 8)
        assert allocate([halves, [h / 4 for h in halves]], [64, 64], 3) == (4, 2)
        assert allocate([halves, [0.0] * 65], [64, 64], 1) == (2, 0)
        assert allocate([halves, halves], [3, 64], 8) == (3, 13)
        assert allocate([halves[:4], halves[:3]], [64, 64], 8) == (3, 2)
        assert allocate([halves] * 3, [64] * 3, 1) == (1, 1, 1)

    def test_allocation_is_within_its_budget_and_best(self) -> None:
        generator = torch.Generator().manual_seed(0)
        drops = torch.rand(6, 9, generator=generator).double().sort(1, descending=True).values
        curves = [[float(drop[i:].sum()) for i in range(10)] for drop in drops]
        given = allocate(curves, [9] * 6, 4)
        assert sum(given) == 24
        kept = torch.tensor(
            [float(d[i]) for d, n in zip(drops, given, strict=True) for i in range(n)]
        )
        assert float(kept.sum()) == pytest.approx(float(drops.flatten().topk(24).values.sum()))
        assert given == allocate(curves, [9] * 6, 4)

    # Configuration and dictionaries

    @pytest.mark.parametrize(
        "config",
        [
            '{"sparsity":0}',
            '{"sparsity":65}',
            '{"sparsity":true}',
            '{"bits":1}',
            '{"bits":9}',
            '{"bits":4.0}',
            '{"tolerance":0}',
            '{"tolerance":1}',
            '{"tolerance":"x"}',
        ],
    )
    def test_configurations_that_cannot_be(self, config: str) -> None:
        with pytest.raises(ConfigurationError, match="lexico-packed"):
            codec_from_config("lexico-packed", config)

    def test_sparsity_beyond_the_model(self) -> None:
        PackedCodec(16).check_geometry(Geometry(1, 1, 16))
        with pytest.raises(ConfigurationError, match="head_dim 16"):
            PackedCodec(17).check_geometry(Geometry(1, 1, 16))

    def test_sets_of_the_wrong_kind(self) -> None:
        group = group_of(SMALL)
        body = memoryview(self.encode(FIXED, group))
        for wanted, codec, other in (
            ("codec lexico-packed", FIXED, random_set(2, 16)),
            ("codec lexico", LexicoCodec(), packed_set(2, 16)),
        ):
            with pytest.raises(DictionaryMismatch, match=f"lexico train --{wanted}`"):
                codec.encode(group, Place(0, 0), other)
            with pytest.raises(DictionaryMismatch, match=f"lexico train --{wanted}`"):
                codec.decode(body, Place(0, 0), other, torch.empty_like(group))

    @pytest.mark.parametrize("made", [(2, 17), (2, 15), (1, 16)], ids=str)
    def test_dictionary_of_another_shape(self, made: tuple[int, int]) -> None:
        group = group_of(SMALL)
        body = memoryview(self.encode(FIXED, group))
        with pytest.raises(DictionaryMismatch, match="head_dim 16"):
            FIXED.encode(group, Place(0, 0), packed_set(*made))
        with pytest.raises(DictionaryMismatch, match="head_dim 16"):
            FIXED.decode(body, Place(0, 0), packed_set(*made), torch.empty_like(group))
        with pytest.raises(UnknownDictionary):
            FIXED.encode(group, Place(0, 0), None)

    # Bodies that no encoder made

    def test_each_check_of_a_body(self) -> None:
        group = group_of(SMALL)
        sound = self.encode(FIXED, group, FAR)
        header, vectors = 16, 60
        scale_bits = [sound[4 * table + 2] >> 4 for table in range(4)]
        scales = math.ceil(15 * sum(scale_bits) / 8)
        ranks = header + scales

        def altered(at: int, *values: int) -> bytes:
            body = bytearray(sound)
            body[at : at + len(values)] = bytes(values)
            return bytes(body)

        assert [sound[4 * table] for table in range(4)] == [8] * 4
        code = subset_code(96, 8)
        assert code.is_whole
        assert code.ranks < 2**37 - 2**32
        bad = {
            "counts say": [altered(0, 7), altered(4, 0), altered(3, 5)],
            "more atoms": [altered(0, 9), altered(0, 255)],
            "more than 8 bits": [altered(2, 0xF0), altered(6, 0x09)],
            "scale over": [altered(1, 255), altered(5, 254)],
            "2 to 8 bits": [altered(3, 1), altered(7, 9), altered(15, 255)],
            "beyond the sets": [altered(ranks, *[255] * 5)],
            "tables": [sound[:15], b""],
            "early": [sound[:16]],
        }
        for message, bodies in bad.items():
            for body in bodies:
                with pytest.raises(DamagedFrame, match=message):
                    self.decode(FIXED, body, group, FAR)
        coefficients = sum(15 * 8 * sound[4 * table + 3] for table in range(4)) / 8
        assert vectors * 37 == 2220
        assert len(sound) == ranks + 278 + math.ceil(coefficients)
        for body in (altered(1, 0), altered(len(sound) - 1, 255)):
            assert bool(self.decode(FIXED, body, group, FAR).isfinite().all())

    def test_index_beyond_a_dictionary(self) -> None:
        """One atom of 96: one bit of its rank and six of its own reach to 127."""
        codec, group = PackedCodec(1, bits=8), group_of((1, 1, 16, 1))
        body = bytearray(self.encode(codec, group, FAR))
        assert subset_code(96, 1).bits(1) == 7
        low = subset_code(96, 1).low_bits
        assert len(body) == 8 + 1 + math.ceil(2 * low / 8) + 2
        body[8] = 0b11  # both ranks 1
        body[9:-2] = ((1 << 2 * low) - 1).to_bytes(len(body) - 11, "little")
        with pytest.raises(DamagedFrame, match="beyond a dictionary"):
            self.decode(codec, body, group, FAR)

    def test_bits_after_a_run_are_zero(self) -> None:
        codec = replace(FIXED, bits=8)
        group = group_of((1, 1, 16, 1))
        body = bytearray(self.encode(codec, group, FAR))
        header, ranks = 8, 2 * 37  # 37 and 37 bits of ranks: 10 bytes with 6 bits to spare
        assert subset_code(95, 8).rank_bits == 37
        assert len(body) == header + math.ceil(ranks / 8) + 2 * 8
        body[header + ranks // 8] |= 0x80
        with pytest.raises(DamagedFrame, match="last bits"):
            self.decode(codec, body, group, FAR)

    def test_fp16_sum_of_atoms_is_clamped(self) -> None:
        signs = group_of((1, 4, 64, 30), "float32").sign()
        out = self.round_trip(FIXED, (65504 * signs).half(), FAR)
        assert float(out.abs().max()) == 65504

    def test_a_table_of_most_atoms(self) -> None:
        """64 atoms: the part of an index that is not ranked is longest."""
        group, dictionary = group_of((1, 2, 80, 9), "float32"), packed_set(1, 80, atoms=2000)
        _, out = encoded(PackedCodec(MOST_ATOMS, bits=8), group, dictionary)
        assert float((out - group).norm() / group.norm()) < 0.05

    def test_counts_of_every_size_in_one_table(self) -> None:
        dictionary = packed_set(1, 32, mean=0.0)
        atoms = dictionary.atoms(0, "key")
        group = group_of((1, 1, 32, 9), "float32")
        group[0, 0, :, 0] = torch.stack(
            [sum((atoms[7 * i] * 0.9**i for i in range(n)), torch.zeros(32)) for n in range(9)]
        )
        body, out = encoded(PackedCodec(8, 0.3, bits=6), group, dictionary)
        assert body[0] == 0
        assert body[2] & 15 == 4  # counts 0..8
        assert bool((out[0, 0, 0] == 0).all())
        near = (out[0, 0, 1:] - group[0, 0, 1:]).norm(dim=-1) / group[0, 0, 1:].norm(dim=-1)
        assert float(near.max()) < 0.4
        assert np.isfinite(out.numpy()).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_empty_groups_of_sinks(shape: Shape) -> None:
    """Pages that are sinks altogether have a header and no runs."""
    layers, heads, dim, _ = shape
    group = group_of((layers, heads, dim, 3))
    body, out = encoded(FIXED, group, packed_set(layers, dim), first_token=0)
    assert torch.equal(bits(out), bits(group))
    assert len(body) == group.numel() * 2 + 4 * 2 * layers
