"""lexico-adaptive: parameters at and beyond their ends, and the sets that serve it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lexico_codec.codecs import AdaptiveCodec, Place, codec_from_config
from lexico_codec.geometry import Geometry
from lexico_codec.sets.dictionary import AtomSet
from lexico_proto.errors import (
    ConfigurationError,
    DictionaryMismatch,
    UnknownDictionary,
    Unsupported,
)
from tests.contract.adaptive_case import USUAL, AdaptiveCase, parse, relative, through
from tests.contract.codec_suite import (
    FAR,
    SMALL,
    group_of,
)
from tests.support.dictionaries import random_set, set_info
from tests.support.packed_sets import packed_set


class TestRefusals(AdaptiveCase):
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *[("added", value) for value in (0, -1, 256, 40000, 1.5, True, "8", None)],
            *[("bits", value) for value in (1, 9, 0, 4.0, None)],
            *[("sparsity", value) for value in (0, 256, 2.0, True)],
            *[("tolerance", value) for value in (0, 1, -0.5, "0.3")],
        ],
    )
    def test_parameters_out_of_range(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigurationError, match=f"lexico-adaptive: {name}="):
            AdaptiveCodec(**{name: value})
        with pytest.raises(ConfigurationError, match="its parameters are added, bits, sparsity"):
            codec_from_config("lexico-adaptive", '{"cap":4}')

    def test_more_atoms_than_the_space_has_dimensions(self) -> None:
        with pytest.raises(ConfigurationError, match="lexico-adaptive: sparsity=17"):
            AdaptiveCodec(sparsity=17).check_geometry(Geometry(2, 3, 16, "float16"))

    def test_largest_parameters(self) -> None:
        group = group_of((1, 3, 16, 100), "float32")
        codec = AdaptiveCodec(16, None, 255, 8)
        assert float(relative(through(codec, group)[1], group).max()) < 0.2
        tight = AdaptiveCodec(2, 0.05, 255, 2)
        body, out = through(tight, group)
        assert max(parse(body, tight, group)[0]) > 100
        assert bool(out.isfinite().all())

    # Dictionaries

    def test_sets_of_lexico_serve_and_no_others(self) -> None:
        group, packed = group_of(SMALL), packed_set(2, 16)
        assert random_set(2, 16).serves("lexico-adaptive")
        assert not packed.serves("lexico-adaptive")
        with pytest.raises(DictionaryMismatch, match=r"`lexico train --codec lexico`"):
            USUAL.encode(group, Place(0, 0), packed)
        with pytest.raises(DictionaryMismatch, match="head_dim 16"):
            USUAL.encode(group, Place(0, 0), random_set(2, 17))
        body = memoryview(self.encode(USUAL, group))
        for dictionary, error in ((None, UnknownDictionary), (packed, DictionaryMismatch)):
            with pytest.raises(error):
                USUAL.decode(body, Place(0, 0), dictionary, torch.empty_like(group))

    def test_there_are_no_codes_to_attend_over(self) -> None:
        assert not USUAL.has_codes
        with pytest.raises(Unsupported, match="codec lexico-adaptive keeps no codes"):
            USUAL.read(
                memoryview(b""),
                Place(0, 0),
                random_set(2, 16),
                (2, 2, 5, 3, 16),
                torch.float16,
                torch.device("cpu"),
            )

    def test_layers_of_a_larger_set(self) -> None:
        """Starts of dictionaries count in the whole set; atoms of half a group."""
        group = group_of((2, 3, 63, 40), "float32")
        whole, codec = random_set(5, 63), AdaptiveCodec(4, None, 30)
        body = bytes(codec.encode(group, Place(3, FAR), whole))
        out, again = torch.empty_like(group), torch.empty_like(group)
        codec.decode(memoryview(body), Place(3, FAR), whole, out)
        moved = AtomSet.build(
            [(whole.atoms(i, "key"), whole.atoms(i, "value")) for i in (3, 4)], set_info()
        )
        codec.decode(memoryview(body), Place(0, FAR), moved, again)
        assert torch.equal(out, again)
        assert sum(body[:4]) > 20
