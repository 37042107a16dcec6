"""lexico-packed: safe against any body, and right at the ends of its format."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lexico_codec.codecs import PackedCodec
from lexico_codec.codecs.packed.packed_codes import MOST_ATOMS
from lexico_codec.codecs.packed.subsets import subset_code
from lexico_proto.errors import (
    DamagedFrame,
)
from tests.contract.codec_suite import FAR, SMALL, group_of
from tests.contract.packed_case import FIXED, PackedCase, encoded
from tests.support.packed_sets import packed_set


class TestBodies(PackedCase):
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
