"""lexico-residual: configurations and sets that are refused, and extreme ones that are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lexico_codec.codecs import LexicoCodec, PackedCodec, Place, ResidualCodec
from lexico_codec.codecs import codec_from_config as configured
from lexico_codec.geometry import Geometry
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import (
    ConfigurationError,
    DictionaryMismatch,
    InvalidInput,
    LexicoError,
    ShapeMismatch,
    UnknownDictionary,
)
from tests.contract.codec_suite import (
    FAR,
    SMALL,
    group_of,
)
from tests.contract.residual_case import BALANCED, ResidualCase, coded
from tests.support.dictionaries import random_set
from tests.support.packed_sets import packed_set
from tests.support.residual_sets import (
    residual_set,
    residual_tensors,
    set_of,
)


class TestRefusals(ResidualCase):
    @pytest.mark.parametrize(
        "config",
        [
            '{"quality":"best"}',
            '{"quality":1}',
            '{"quality":null}',
            '{"step":0}',
            '{"step":-1}',
            '{"step":"1"}',
            '{"step":true}',
            '{"step":NaN}',
            '{"step":Infinity}',
            '{"run_layers":-1}',
            '{"run_layers":1.0}',
            '{"run_layers":true}',
            '{"run_layers":null}',
            '{"sparsity":8}',
        ],
    )
    def test_configurations_that_cannot_be(self, config: str) -> None:
        with pytest.raises(ConfigurationError, match="lexico-residual"):
            configured("lexico-residual", config)

    def test_layers_must_divide_into_runs(self) -> None:
        ResidualCodec(run_layers=3).check_geometry(Geometry(6, 1, 16))
        for run_layers in (4, 12):
            with pytest.raises(ConfigurationError, match="6 layers"):
                ResidualCodec(run_layers=run_layers).check_geometry(Geometry(6, 1, 16))

    def test_groups_are_runs(self) -> None:
        geometry = Geometry(6, 1, 16)
        for run_layers, groups in ((0, 1), (6, 1), (3, 2), (1, 6)):
            codec = ResidualCodec(run_layers=run_layers)
            spec = CacheSpec(bytes(32), geometry, codec, bytes(32))
            assert spec.groups == groups
            assert replace(spec, group_layers=spec.group_layers) == spec
            with pytest.raises(ShapeMismatch, match="layers together; leave it out"):
                CacheSpec(bytes(32), geometry, codec, bytes(32), group_layers=2)

    def test_sets_of_the_wrong_kind(self) -> None:
        group = group_of(SMALL)
        body = memoryview(self.encode(BALANCED, group))
        for other in (random_set(2, 16), packed_set(2, 16)):
            with pytest.raises(DictionaryMismatch, match="train --codec lexico-residual"):
                BALANCED.encode(group, Place(0, 0), other)
            with pytest.raises(DictionaryMismatch, match="train --codec lexico-residual"):
                BALANCED.decode(body, Place(0, 0), other, torch.empty_like(group))
        for codec in (LexicoCodec(), PackedCodec()):
            with pytest.raises(LexicoError, match="dictionar"):
                codec.encode(group, Place(0, 0), residual_set(2, 3, 16))

    def test_no_set(self) -> None:
        group = group_of(SMALL)
        with pytest.raises(UnknownDictionary):
            BALANCED.encode(group, Place(0, 0), None)
        with pytest.raises(UnknownDictionary):
            BALANCED.decode(memoryview(b""), Place(0, 0), None, group)

    @pytest.mark.parametrize(
        ("made", "advice"),
        [
            ((2, 3, 17), "3 KV heads of 17"),
            ((2, 2, 16), "2 KV heads of 16"),
            ((2, 6, 8), "6 KV heads of 8"),
            ((1, 3, 16), "run_layers=1"),
            ((3, 3, 16), "run_layers=3"),
            ((4, 3, 16, 4), "run_layers=1"),
        ],
        ids=str,
    )
    def test_set_of_another_model(self, made: tuple[int, ...], advice: str) -> None:
        group = group_of(SMALL)
        body = memoryview(self.encode(BALANCED, group))
        with pytest.raises(DictionaryMismatch, match=advice):
            BALANCED.encode(group, Place(0, 0), residual_set(*made))
        with pytest.raises(DictionaryMismatch, match=advice):
            BALANCED.decode(body, Place(0, 0), residual_set(*made), torch.empty_like(group))

    @pytest.mark.parametrize("first_layer", [1, 4, 6, 1000])
    def test_layers_that_are_no_run(self, first_layer: int) -> None:
        group, dictionary = group_of(SMALL), residual_set(4, 3, 16, runs=2)
        with pytest.raises(DictionaryMismatch, match="runs of 2 layers"):
            BALANCED.encode(group, Place(first_layer, 0), dictionary)

    def test_a_shard_of_the_heads_is_refused(self) -> None:
        """As many heads as the set has, but others: its bases would be those of the first."""
        group = group_of(SMALL)
        dictionary = self.dictionary(group.shape[0], group.shape[4])
        body = memoryview(self.encode(BALANCED, group))
        for first in (1, group.shape[3]):
            shard = Place(0, FAR, first_head=first)
            with pytest.raises(DictionaryMismatch, match="all KV heads together"):
                BALANCED.encode(group, shard, dictionary)
            with pytest.raises(DictionaryMismatch, match="all KV heads together"):
                BALANCED.decode(body, shard, dictionary, torch.empty_like(group))

    def test_matrices_without_inverse_are_named(self) -> None:
        """No training makes such a set, but anyone may send one."""
        for name in ("bases", "cross"):
            tensors = residual_tensors(2, 3, 16)
            tensors[f"residual.{name}"].zero_()
            dictionary = set_of(tensors)
            with pytest.raises(InvalidInput, match="without an inverse"):
                BALANCED.encode(group_of(SMALL), Place(0, FAR), dictionary)

    def test_extreme_numbers_of_a_set_do_no_harm(self) -> None:
        group = group_of(SMALL, "float32")
        for name, number in (
            ("scales", 3e38),
            ("scales", 1e-38),
            ("means", 3e38),
            ("cross_scales", 3e38),
            ("gains", 3e38),
            ("coefficients", 1e-45),
            ("coefficients", 3e38),
            ("remaining", 3e38),
            ("remaining", 1e-45),
            ("deviations", 1e-45),
            ("deviations", 3e38),
            ("points", 3e38),
            ("steps", 1e-45),
            ("steps", 3e38),
        ):
            tensors = residual_tensors(2, 3, 16)
            tensors[f"residual.{name}"].fill_(number)
            try:
                _, out = coded(BALANCED, group, set_of(tensors))
            except LexicoError:
                continue
            assert bool(out.isfinite().all()), name
