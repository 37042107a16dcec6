"""What the tests of codec lexico-packed share."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from lexico_codec.codecs import Codec, PackedCodec, Place
from lexico_codec.codecs.packed.subsets import subset_code
from lexico_codec.geometry import Rope
from lexico_codec.kernels.pursuit import naive
from lexico_codec.sets.atom_tensors import PARTS
from lexico_codec.sets.dictionary import AtomSet, DictionarySet
from tests.contract.codec_suite import (
    FAR,
    CodecCase,
)
from tests.support.packed_sets import packed_set

FIXED, TOLERANT = PackedCodec(), PackedCodec(sparsity=12, tolerance=0.6, bits=5)
ROPE = Rope(tuple(10000 ** (-i / 8) for i in range(8)), "half", 1.5)


def tables_of(group: Tensor, dictionary: AtomSet) -> list[tuple[Tensor, Tensor]]:
    """(vectors without their means `[tokens * heads, dim]`, atoms) of keys, then values."""
    layers, heads, dim = group.shape[0], group.shape[3], group.shape[4]
    means = dictionary.means(0, layers)[:, :heads]
    return [
        (
            (group[layer, i].float() - means[2 * layer + i]).reshape(-1, dim),
            dictionary.atoms(layer, part),
        )
        for layer in range(layers)
        for i, part in enumerate(PARTS)
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


class PackedCase(CodecCase):
    """Codes groups with packed sets, whose means are of size `mean`."""

    codecs: ClassVar[list[Codec]] = [FIXED, TOLERANT]
    mean = 0.5

    @pytest.fixture(params=codecs, ids=["fixed", "tolerant"])
    def codec(self, request: pytest.FixtureRequest) -> Codec:
        codec: PackedCodec = request.param
        return codec

    def dictionary(self, layers: int, head_dim: int) -> AtomSet:
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
