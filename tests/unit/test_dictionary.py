"""Dictionary sets: equal content gives equal bytes, damaged bytes give a clear error."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from lexico_codec.canonical import canonical_json
from lexico_codec.sets import artefact as artefacts
from lexico_codec.sets.builtin import builtin_sets, load_builtin
from lexico_codec.sets.dictionary import AtomSet, DictionarySet, TransformSet
from lexico_codec.sets.info import SetInfo
from lexico_proto.errors import (
    ConfigurationError,
    InvalidInput,
    UnknownDictionary,
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "frames" / "v1"
INFO = SetInfo(
    model="tiny",
    kv_heads=3,
    rope={"inv_freq": [1.0, 0.1], "pairing": "half", "scale": 1.0},
    sparsity=2,
    training={"seed": 0},
    corpus_digest="00" * 32,
    held_out=[{"key": 0.1, "value": 0.25}, {"key": 0.2, "value": 0.5}],
    command="lexico train",
)


def atoms(size: int, m: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(size, m, generator=generator), dim=1)


LAYERS = [(atoms(5, 4, 0), atoms(7, 4, 1)), (atoms(6, 4, 2), atoms(5, 4, 3))]
TENSORS = {
    f"layers.{i:02d}.{part}.atoms": table.half()
    for i, pair in enumerate(LAYERS)
    for part, table in zip(("key", "value"), pair, strict=True)
}
DOCUMENT = {
    "format": 1,
    "layers": 2,
    "model": "tiny",
    "kv_heads": 3,
    "rope": INFO.rope,
    "sparsity": 2,
    "training": {"seed": 0},
    "corpus_digest": "00" * 32,
    "held_out": INFO.held_out,
    "command": "lexico train",
}


def artefact(tensors: dict[str, Tensor] = TENSORS, **changes: Any) -> bytes:
    return save(tensors, {"lexico": canonical_json({**DOCUMENT, **changes})})


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    made = AtomSet.build(LAYERS, INFO)
    made.save(tmp_path / "set.safetensors")
    read = AtomSet.load(tmp_path / "set.safetensors")
    assert (read.digest, read.to_bytes(), read.info) == (made.digest, made.to_bytes(), INFO)
    assert (read.layers, read.head_dim) == (2, 4)
    assert list(tmp_path.iterdir()) == [tmp_path / "set.safetensors"]
    for i, (key, value) in enumerate(LAYERS):
        assert torch.equal(read.atoms(i, "key"), key.half().float())
        assert torch.equal(read.atoms(i, "value"), value.half().float())


def test_a_set_prints_as_a_line() -> None:
    made = AtomSet.build(LAYERS, INFO)
    assert made.digest.hex()[:16] in repr(made)
    assert len(repr(made)) < 200


def test_equal_content_gives_equal_bytes() -> None:
    assert AtomSet.build(LAYERS, INFO).to_bytes() == artefact()
    other = AtomSet.build(LAYERS, replace(INFO, command="other"))
    assert other.digest != AtomSet.build(LAYERS, INFO).digest


def test_digest_is_blake2b_of_the_bytes() -> None:
    made = AtomSet.build(LAYERS, INFO)
    assert len(made.digest) == 32
    assert made.digest == hashlib.blake2b(made.to_bytes(), digest_size=32).digest()


def test_atoms_of_a_missing_layer() -> None:
    made = AtomSet.build(LAYERS, INFO)
    with pytest.raises(InvalidInput, match="layer 2"):
        made.atoms(2, "key")


def but(name: str, table: Tensor) -> dict[str, Tensor]:
    return {**TENSORS, f"layers.{name}.atoms": table}


SPOILT = atoms(5, 4, 0).half()
SPOILT[2, 1] = float("nan")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        b"\x02\0\0\0\0\0\0\0{}",
        save(TENSORS),
        save(TENSORS, {"lexico": "{"}),
        save(TENSORS, {"lexico": "[]"}),
        save(TENSORS, {"lexico": "[" * 100_000}),
        save(TENSORS, {"lexico": " " * (1 << 20) + "{}"}),
        artefact(format=3),
        artefact(format=0),
        artefact(format=True),
        artefact(format=1.0),
        artefact(layers=1),
        artefact(layers=3),
        artefact(layers=513),
        artefact(layers=True),
        artefact(layers="2"),
        artefact(kv_heads=0),
        artefact(sparsity=0),
        artefact(sparsity=5),
        artefact(sparsity=256),
        artefact(rope=[]),
        artefact(training=None),
        artefact(model=7),
        artefact(extra=1),
        artefact(held_out=[{"key": 0.1, "value": 0.2}]),
        artefact(held_out=[{"key": 0.1}, {"key": 0.1}]),
        artefact(held_out=2 * [{"key": 0.1, "value": 10**400}]),
        save(TENSORS, {"lexico": json.dumps({**DOCUMENT, "held_out": [float("nan")]})}),
        artefact(but("00.key", atoms(5, 4, 0))),
        artefact(but("00.key", atoms(5, 4, 0).half()[None])),
        artefact(but("00.key", atoms(5, 8, 0).half())),
        artefact(but("00.key", torch.zeros(0, 4).half())),
        artefact(but("00.key", SPOILT)),
        artefact(but("00.key", (1.01 * atoms(5, 4, 0)).half())),
        artefact(but("02.key", atoms(5, 4, 0).half())),
        artefact(but("00.key", torch.ones(16385, 1).half())),
        artefact(but("00.key", torch.full((1, 513), 513**-0.5).half())),
    ],
)
def test_what_is_no_set_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="dictionary set"):
        DictionarySet.load(data)


MEANS = [(atoms(3, 4, 20), atoms(3, 4, 21)), (atoms(3, 4, 22), atoms(3, 4, 23))]
ERRORS = torch.tensor([4.0, 2.0, 2.0, 0.0]).repeat(2, 2, 1)
FORMAT_2 = {
    **TENSORS,
    "layers.00.key.atoms": (100 * atoms(5, 4, 0)).round().to(torch.int8),
    **{
        f"layers.{i:02d}.{part}.mean": mean.half()
        for i, pair in enumerate(MEANS)
        for part, mean in zip(("key", "value"), pair, strict=True)
    },
    "packed.errors": ERRORS,
}


def test_set_with_means_and_errors() -> None:
    pairs = [(FORMAT_2["layers.00.key.atoms"], LAYERS[0][1]), LAYERS[1]]
    made = AtomSet.build(pairs, INFO, MEANS, ERRORS)
    read = AtomSet.load(made.to_bytes())
    assert read.digest == DictionarySet.load(artefact(FORMAT_2, format=2)).digest
    assert read.unrotated
    assert read.info == INFO
    expected = torch.stack([mean.half().float() for pair in MEANS for mean in pair])
    assert torch.equal(read.means(0, 2), expected)
    assert torch.equal(read.means(1, 1), expected[2:])
    assert read.errors is not None
    assert torch.equal(read.errors, ERRORS)
    assert torch.equal(read.atoms(1, "value"), LAYERS[1][1].half().float())
    with pytest.raises(InvalidInput, match="layers 1"):
        read.means(1, 2)


def test_a_newer_format_says_what_to_run() -> None:
    for data in (artefact(format=4), artefact(FORMAT_2, format=10**30)):
        with pytest.raises(InvalidInput, match=r"newer version of lexico.*lexico train"):
            DictionarySet.load(data)


@pytest.mark.parametrize(
    ("name", "digest", "kind", "version"),
    [
        ("lexico", "75962b1523026f1d", AtomSet, 1),
        ("lexico-packed", "efe41e501fc8dd66", AtomSet, 2),
        ("lexico-residual", "caee27598101c15c", TransformSet, 3),
    ],
)
def test_sets_of_every_format_load_for_ever(
    name: str, digest: str, kind: type[DictionarySet], version: int
) -> None:
    """Those that the golden frames were made with."""
    data = (FIXTURES / f"{name}.safetensors").read_bytes()
    read = DictionarySet.load(data)
    assert type(read) is kind
    assert read.serves(name)
    assert read.to_bytes() == data
    assert hashlib.blake2b(data, digest_size=8).hexdigest() == digest
    assert f'\\"format\\":{version}'.encode() in data


SHIPPED = {
    "smollm2-135m": ("3ba86c1ba23c7eae", AtomSet),
    "smollm2-135m-packed": ("6f7d7ac1d984812a", AtomSet),
    "smollm2-135m-residual": ("4a765de976d84c41", TransformSet),
}


def test_shipped_sets_are_these_bytes() -> None:
    assert set(builtin_sets()) == SHIPPED.keys()
    for name, (digest, kind) in SHIPPED.items():
        shipped = load_builtin(name)
        assert type(shipped) is kind
        assert hashlib.blake2b(shipped.to_bytes(), digest_size=8).hexdigest() == digest


def test_int8_atoms_have_unit_norm() -> None:
    stored = torch.tensor([[3, 0, -4, 0], [127, -128, 1, 0], [0, 0, 0, 1]], dtype=torch.int8)
    made = AtomSet.build([(stored, LAYERS[0][1]), LAYERS[1]], INFO)
    assert torch.equal(made.atoms(0, "key")[0], torch.tensor([0.6, 0.0, -0.8, 0.0]))
    assert float((made.atoms(0, "key").norm(dim=1) - 1).abs().max()) < 1e-6
    assert not made.unrotated
    assert made.errors is None
    with pytest.raises(InvalidInput, match="no means"):
        made.means(0, 1)


def test_a_plain_set_stays_of_format_1() -> None:
    header = AtomSet.build(LAYERS, INFO).to_bytes()
    assert b'\\"format\\":1' in header
    assert DictionarySet.load(artefact(format=2)).digest != DictionarySet.load(artefact()).digest


def with_2(**tensors: Tensor | None) -> bytes:
    """Format 2 with some tensors changed; `_` stands for a dot in a name."""
    changed = {name.replace("_", "."): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in {**FORMAT_2, **changed}.items() if tensor is not None}
    return artefact(kept, format=2)


SPOILT_MEAN = atoms(3, 4, 0).half()
SPOILT_MEAN[1, 1] = float("inf")


@pytest.mark.parametrize(
    "data",
    [
        artefact(FORMAT_2),
        artefact({**TENSORS, "packed.errors": ERRORS}),
        artefact({**TENSORS, "layers.00.key.atoms": FORMAT_2["layers.00.key.atoms"]}),
        with_2(layers_00_key_mean=None),
        with_2(layers_00_key_mean=atoms(3, 4, 0)),
        with_2(layers_00_key_mean=atoms(2, 4, 0).half()),
        with_2(layers_00_key_mean=atoms(3, 5, 0).half()),
        with_2(layers_00_key_mean=atoms(3, 4, 0).half()[None]),
        with_2(layers_00_key_mean=SPOILT_MEAN),
        with_2(layers_02_key_mean=atoms(3, 4, 0).half()),
        with_2(layers_00_key_scale=atoms(3, 4, 0).half()),
        with_2(layers_00_key_atoms=torch.zeros(5, 4, dtype=torch.int8)),
        with_2(layers_00_key_atoms=torch.ones(5, 4, dtype=torch.uint8)),
        with_2(layers_00_key_atoms=torch.ones(5, 4, dtype=torch.float32) / 2),
        with_2(layers_00_key_atoms=torch.ones(20, dtype=torch.int8)),
        with_2(packed_errors=ERRORS.double()),
        with_2(packed_errors=ERRORS[:1]),
        with_2(packed_errors=ERRORS[:, :1].contiguous()),
        with_2(packed_errors=ERRORS[:, :, 0].contiguous()),
        with_2(packed_errors=ERRORS[:, :, :1].contiguous()),
        with_2(packed_errors=torch.zeros(2, 2, 257)),
        with_2(packed_errors=ERRORS.flip(2).contiguous()),
        with_2(packed_errors=-ERRORS.flip(2).contiguous()),
        with_2(packed_errors=ERRORS / 0),
        with_2(packed_errors=torch.zeros(2, 2, 0)),
        with_2(packed_more=ERRORS.clone()),
        with_2(packed=ERRORS.clone()),
        with_2(other_errors=ERRORS.clone()),
        with_2(layers=ERRORS.clone()),
    ],
)
def test_what_is_no_set_of_format_2_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="dictionary set"):
        DictionarySet.load(data)


def test_oversized_bytes_are_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefacts, "MAX_DICTIONARY_BYTES", 100)
    with pytest.raises(InvalidInput, match="at most 100"):
        DictionarySet.load(artefact())


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), sound=st.sampled_from([artefact(), artefact(FORMAT_2, format=2)]))
def test_damaged_bytes_never_crash(data: st.DataObject, sound: bytes) -> None:
    spoilt = bytearray(sound)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(spoilt) - 1))
        spoilt[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(spoilt)), st.integers(0, len(spoilt))))
    tail = data.draw(st.binary(max_size=3))
    try:
        read = AtomSet.load(bytes(spoilt[:cut]) + tail)
    except InvalidInput:
        return
    assert read.layers == 2
    assert all(bool(read.atoms(i, "key").isfinite().all()) for i in range(2))


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing-here"):
        DictionarySet.load(tmp_path / "nothing-here")
    with pytest.raises(ConfigurationError, match="absent"):
        AtomSet.build(LAYERS, INFO).save(tmp_path / "absent" / "set.safetensors")


def test_unwritten_target_keeps_its_former_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "set.safetensors"
    target.write_bytes(b"former")

    def fail(*_: object) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ConfigurationError, match="no space"):
        AtomSet.build(LAYERS, INFO).save(target)
    assert target.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [target]


def test_builtin_sets_load_and_are_small() -> None:
    assert "smollm2-135m" in builtin_sets()
    for name in builtin_sets():
        shipped = load_builtin(name)
        assert len(shipped.to_bytes()) <= 16_000_000
        assert load_builtin(name) is shipped
    shipped = load_builtin("smollm2-135m")
    assert (shipped.layers, shipped.kv_heads, shipped.head_dim) == (30, 3, 64)
    assert shipped.info.sparsity == 8


def test_unknown_builtin_names_the_known() -> None:
    with pytest.raises(UnknownDictionary, match="smollm2-135m"):
        load_builtin("no-such-set")
