"""Sets of format 3, and the specs of the codec that needs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from lexico_codec.codecs import LexicoCodec, PackedCodec, Place, ResidualCodec
from lexico_codec.geometry import Geometry
from lexico_codec.sets.dictionary import DictionarySet, TransformSet
from lexico_codec.sets.transform import (
    QUALITIES,
)
from lexico_codec.spec import CacheSpec, Shard
from lexico_proto.errors import ConfigurationError, InvalidInput, LexicoError, ShapeMismatch
from tests.support.dictionaries import random_set, set_info
from tests.support.residual_sets import (
    residual_tensors,
    set_of,
)
from tests.support.transform_sets import TENSORS, metadata_of
from tests.support.transform_sets import exact_products as exact_products

# Sets of format 3


def test_set_of_a_transform(tmp_path: Path) -> None:
    made = set_of(TENSORS)
    made.save(tmp_path / "set.safetensors")
    read = DictionarySet.load(tmp_path / "set.safetensors")
    assert (read.digest, read.to_bytes(), read.info) == (made.digest, made.to_bytes(), made.info)
    assert set_of(residual_tensors(2, 3, 8, runs=2, joint=6, seed=1)).digest != made.digest
    assert (read.layers, read.head_dim, read.info.sparsity) == (2, 8, 2)
    assert b'\\"format\\":3' in read.to_bytes()
    assert [read.serves(c) for c in ("lexico-residual", "lexico", "lexico-packed", "raw")] == [
        True,
        False,
        False,
        False,
    ]
    assert isinstance(read, TransformSet)
    transform = read.transform
    assert transform.steps == dict(zip(QUALITIES, (0.0625, 0.25, 1.0), strict=True))
    torch.testing.assert_close(transform.atoms.norm(dim=2), torch.ones(2, 20))
    assert load(read.to_bytes()).keys() == TENSORS.keys()


def test_sets_of_other_kinds_do_not_serve() -> None:
    assert not random_set(2, 16).serves("lexico-residual")
    assert random_set(2, 16).serves("lexico")


def test_other_codecs_name_what_is_wrong() -> None:
    group = torch.zeros(2, 2, 5, 3, 8)
    for codec in (LexicoCodec(sparsity=1), PackedCodec(sparsity=1)):
        with pytest.raises(LexicoError, match=r"transform|train --codec"):
            codec.encode(group, Place(0, 9), set_of(TENSORS))


def test_formats_do_not_mix() -> None:
    plain, metadata = load(random_set(2, 8).to_bytes()), metadata_of(random_set(2, 8))
    with pytest.raises(InvalidInput, match="stands alone"):
        DictionarySet.load(save({**plain, **TENSORS}, metadata_of(set_of(TENSORS))))
    for version in (1, 2, 3):
        text = metadata["lexico"].replace('"format":1', f'"format":{version}')
        with pytest.raises(InvalidInput, match="dictionary set"):
            DictionarySet.load(save({**plain, **TENSORS}, {"lexico": text}))
        with pytest.raises(InvalidInput, match="dictionary set"):
            DictionarySet.load(save(TENSORS if version < 3 else plain, {"lexico": text}))
    for layers in (1, 3):
        text = metadata_of(set_of(TENSORS))["lexico"].replace('"layers":2', f'"layers":{layers}')
        with pytest.raises(InvalidInput, match="dictionary set"):
            DictionarySet.load(save(TENSORS, {"lexico": text}))


def test_held_out_and_sparsity_of_a_transform() -> None:
    info = replace(set_info(3), sparsity=0)
    tensors = {name.removeprefix("residual."): tensor for name, tensor in TENSORS.items()}
    assert TransformSet.build(tensors, info).info.sparsity == 0
    for wrong in (-1, 256):
        with pytest.raises(InvalidInput, match="sparsity"):
            TransformSet.build(tensors, replace(info, sparsity=wrong))
    with pytest.raises(InvalidInput):
        TransformSet.build({}, info)


# Specs


def spec_of(codec: ResidualCodec, layers: int = 6, **options: int) -> CacheSpec:
    return CacheSpec(bytes(32), Geometry(layers, 3, 8), codec, bytes(32), **options)  # type: ignore[arg-type]


def test_a_group_is_a_run() -> None:
    assert spec_of(ResidualCodec()).group_layers == 6
    assert spec_of(ResidualCodec(run_layers=2)).group_layers == 2
    spec = spec_of(ResidualCodec(run_layers=2), group_layers=2)
    assert [spec.group_range(g) for g in range(spec.groups)] == [
        range(0, 2),
        range(2, 4),
        range(4, 6),
    ]
    for codec, layers in ((ResidualCodec(), 2), (ResidualCodec(run_layers=2), 6)):
        with pytest.raises(ShapeMismatch, match="leave it out"):
            spec_of(codec, group_layers=layers)
    for run_layers in (4, 5, 12):
        with pytest.raises(ConfigurationError, match="6 layers are no runs"):
            spec_of(ResidualCodec(run_layers=run_layers))
    with pytest.raises(ShapeMismatch, match="frames a page"):
        spec_of(ResidualCodec(run_layers=1), layers=65)


def test_steps_and_runs_are_part_of_the_namespace() -> None:
    codecs = [
        ResidualCodec(),
        ResidualCodec("near"),
        ResidualCodec(step=0.25),
        ResidualCodec(step=0.5),
        ResidualCodec(run_layers=6),
        ResidualCodec(run_layers=3),
    ]
    assert len({spec_of(codec).namespace for codec in codecs}) == len(codecs)


def test_a_pipeline_shard_finds_its_run() -> None:
    from lexico_codec.pages import decode_group, encode_group

    tensors = residual_tensors(6, 3, 8, runs=3)
    dictionary = set_of(tensors)
    shard = Shard(2, 6, 0, 3)
    spec = CacheSpec(
        bytes(32),
        Geometry(4, 3, 8, "float32"),
        ResidualCodec("near", run_layers=2),
        dictionary.digest,
        page_tokens=7,
        shard=shard,
    )
    group = torch.randn(*spec.group_shape(1), generator=torch.Generator().manual_seed(0))
    frame = encode_group(spec, bytes(32), 3, 1, group, dictionary)
    out = torch.full_like(group, float("nan"))
    decode_group(spec, bytes(32), 3, 1, frame, out, dictionary)
    assert float((out - group).norm() / group.norm()) < 0.1
    direct = ResidualCodec("near").encode(group, Place(4, 21), dictionary)
    assert bytes(frame).endswith(direct)
