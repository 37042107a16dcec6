"""lexico-residual: safe against any body."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexico_codec.codecs import ResidualCodec
from lexico_codec.codecs.residual.header import bands_of, header_bytes
from lexico_proto.errors import (
    DamagedFrame,
)
from tests.contract.codec_suite import (
    FAR,
    RANDOM,
    SMALL,
    group_of,
)
from tests.contract.residual_case import BALANCED, MIXED, ResidualCase
from tests.support.residual_sets import (
    transform_of,
)


class TestBodies(ResidualCase):
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
