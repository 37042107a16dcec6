"""lexico-packed: configurations and dictionaries that are refused."""

from __future__ import annotations

import pytest
import torch

from lexico_codec.codecs import LexicoCodec, PackedCodec, Place, codec_from_config
from lexico_codec.geometry import Geometry
from lexico_proto.errors import (
    ConfigurationError,
    DictionaryMismatch,
    UnknownDictionary,
)
from tests.contract.codec_suite import SMALL, group_of
from tests.contract.packed_case import FIXED, PackedCase
from tests.support.dictionaries import random_set
from tests.support.packed_sets import packed_set


class TestRefusals(PackedCase):
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
