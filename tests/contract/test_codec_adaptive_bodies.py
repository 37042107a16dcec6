"""lexico-adaptive: bodies that no encoder made, and how added atoms are written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lexico_codec.codecs import AdaptiveCodec, Place
from lexico_codec.codecs.adaptive import added_atoms
from lexico_codec.codecs.lexico import ragged_codes
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_proto.errors import (
    DamagedFrame,
)
from tests.contract.adaptive_case import AdaptiveCase, odd_group, through
from tests.contract.codec_suite import (
    FAR,
    RANDOM,
)
from tests.support.dictionaries import random_set, unit_rows


class TestBodies(AdaptiveCase):
    def test_each_check_of_a_body(self) -> None:
        group, _ = odd_group(kinds=3, times=30)
        codec = AdaptiveCodec(8, 0.3, added=3, bits=4)
        sound, _ = through(codec, group)
        assert list(sound[:2]) == [3, 0]
        codes = 2 + 3 * 32
        index = codes + 2 * 180

        def altered(at: int, *values: int) -> bytes:
            body = bytearray(sound)
            body[at : at + len(values)] = bytes(values)
            return bytes(body)

        dictionary = random_set(1, 64)
        bad = {
            "4 added atoms, the codec allows 3": [altered(0, 4), altered(1, 255)[:1] + b"\4"],
            "added atoms alone": [sound[:codes][:-1], sound[:2]],
            "counts of added atoms": [sound[:1], b""],
            "is zero": [altered(2 + 32, *[0x88] * 32)],
            "beyond a dictionary": [altered(index, 99, 0), altered(index, 0xFF, 0x7F)],
            "negative index": [altered(index, 0xFF, 0xFF)],
            "do not add up": [altered(codes, 2)],
        }
        for message, bodies in bad.items():
            for body in bodies:
                with pytest.raises(DamagedFrame, match=message):
                    codec.decode(
                        memoryview(body), Place(0, FAR), dictionary, torch.empty_like(group)
                    )
        for body in (altered(index, 98, 0), altered(2, 0x00), altered(2, 0xFF)):
            out = torch.full_like(group, float("nan"))
            codec.decode(memoryview(body), Place(0, FAR), dictionary, out)
            assert bool(out.isfinite().all())

    def test_bits_behind_the_last_atom(self) -> None:
        levels = [torch.tensor([[1, -1, 1]], dtype=torch.int8)]
        body = bytearray(added_atoms.write(levels, 3))
        assert len(body) == 1 + 2
        body[2] |= 0x80
        with pytest.raises(DamagedFrame, match="behind the last"):
            added_atoms.read(memoryview(body), 1, 3, 3, 4)

    def test_opposite_overflows_are_numbers(self) -> None:
        """An atom of the set and an added one, each times the largest float32."""
        codec, dictionary = AdaptiveCodec(2, None, 1, 8), random_set(1, 16)
        levels = [(127 * dictionary.atoms(0, "key")[:1]).round().to(torch.int8)]
        codes = Codes(
            torch.tensor([[0, 96], [0, 0]], dtype=torch.int16),
            torch.tensor([[0x7E, 0xFE], [0, 0]], dtype=torch.uint8),
            torch.tensor([2, 0], dtype=torch.uint8),
            torch.tensor([-120, 0], dtype=torch.int8),
        )
        body = added_atoms.write([*levels, levels[0][:0]], 8) + ragged_codes.write(codes)
        out = torch.full((1, 2, 1, 1, 16), float("nan"))
        codec.decode(memoryview(body), Place(0, FAR), dictionary, out)
        assert bool(out.isfinite().all())


@RANDOM
@given(st.integers(2, 8), st.integers(1, 40), st.integers(0, 5), st.integers(0, 1000))
def test_atoms_are_read_as_they_were_written(width: int, m: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, count, m, generator=generator)
    levels = [added_atoms.to_levels(table, width)[: count - i] for i, table in enumerate(rows)]
    body = added_atoms.write(levels, width) + b"rest"
    counts, atoms, rest = added_atoms.read(memoryview(body), 3, m, width, 5)
    assert counts == [len(table) for table in levels]
    assert torch.equal(atoms, added_atoms.directions(torch.cat(levels)))
    assert bytes(rest) == b"rest"
    np.testing.assert_allclose(atoms.norm(dim=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("width", "least", "outliers"),
    [(2, 0.85, 0.7), (3, 0.95, 0.8), (4, 0.985, 0.92), (8, 0.9999, 0.999)],
)
def test_levels_point_where_the_rows_do(width: int, least: float, outliers: float) -> None:
    rows = unit_rows(50, 128, 3)
    rows[:5, 7] *= 20
    atoms = added_atoms.directions(added_atoms.to_levels(rows, width))
    cosines = torch.nn.functional.cosine_similarity(atoms, rows)
    assert float(cosines[5:].min()) > least
    assert float(cosines[:5].min()) > outliers


def test_levels_of_nothing() -> None:
    for rows in (torch.zeros(2, 5), torch.full((1, 5), 1e-38), torch.full((1, 5), 1e-30)):
        assert bool(added_atoms.to_levels(rows, 4).isfinite().all())
    assert not bool(added_atoms.to_levels(torch.zeros(2, 5), 4).any())
