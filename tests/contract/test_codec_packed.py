"""lexico-packed: small, within the error that rounding allows, atoms where the error falls."""

from __future__ import annotations

import pytest
import torch

from lexico_codec.codecs import Codec, LexicoCodec, PackedCodec, Place
from lexico_codec.codecs.packed.codec import allocate
from lexico_codec.geometry import DTYPES
from lexico_codec.kernels.pursuit import naive
from lexico_codec.rope import rotate, unrotate
from lexico_proto.errors import (
    DictionaryMismatch,
)
from tests.contract.codec_suite import FAR, SHAPES, SMALL, CodecSuite, Shape, bits, group_of
from tests.contract.packed_case import FIXED, ROPE, PackedCase, bits_a_vector, encoded, tables_of
from tests.support.dictionaries import random_set
from tests.support.packed_sets import packed_set


class TestPackedCodec(PackedCase, CodecSuite):
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


@pytest.mark.parametrize("shape", SHAPES)
def test_empty_groups_of_sinks(shape: Shape) -> None:
    """Pages that are sinks altogether have a header and no runs."""
    layers, heads, dim, _ = shape
    group = group_of((layers, heads, dim, 3))
    body, out = encoded(FIXED, group, packed_set(layers, dim), first_token=0)
    assert torch.equal(bits(out), bits(group))
    assert len(body) == group.numel() * 2 + 4 * 2 * layers
