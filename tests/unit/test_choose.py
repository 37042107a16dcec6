"""Sets are found for a model, or refused, in one place: by shape, rotary embedding and codec."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexico_codec.codecs import CODECS, Codec, LexicoCodec, ResidualCodec
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.sets import choose as choosing
from lexico_codec.sets.builtin import builtin_sets, load_builtin
from lexico_codec.sets.choose import at_hand, check_model, choose, find, fitting_builtin
from lexico_codec.sets.dictionary import AtomSet, DictionarySet, TransformSet
from lexico_proto.errors import (
    ConfigurationError,
    DictionaryMismatch,
    InvalidInput,
    UnknownDictionary,
)
from tests.support.dictionaries import random_set
from tests.support.packed_sets import packed_set
from tests.support.residual_sets import residual_set

LAYERS, KV_HEADS, HEAD_DIM = 4, 3, 16


def rope(theta: float = 10000.0, pairs: int = 8, **changes: Any) -> Rope:
    return Rope(tuple(theta ** (-i / pairs) for i in range(pairs)), **changes)


MODEL = Geometry(LAYERS, KV_HEADS, HEAD_DIM, "float16", rope())


def saying(made: DictionarySet, said: Rope | None, kv_heads: int = KV_HEADS) -> DictionarySet:
    """A set that says it is of a model with that rotary embedding."""
    told = {} if said is None else {**vars(said), "inv_freq": list(said.inv_freq)}
    return replace(made, info=replace(made.info, rope=told, kv_heads=kv_heads))


SETS = {
    "lexico": saying(random_set(LAYERS, HEAD_DIM, kv_heads=KV_HEADS), MODEL.rope),
    "lexico-packed": saying(packed_set(LAYERS, HEAD_DIM, heads=KV_HEADS), MODEL.rope),
    "lexico-residual": saying(residual_set(LAYERS, KV_HEADS, HEAD_DIM, runs=2), MODEL.rope),
}
"""A set for each codec that sets are trained for."""
KIND_OF = {**{name: name for name in SETS}, "lexico-adaptive": "lexico"}
"""Codec → whose sets it takes."""

NEIGHBOURS = {
    "layers": (replace(MODEL, layers=6), "4 layers, not 6"),
    "KV heads": (replace(MODEL, kv_heads=2), "3 KV heads, not 2"),
    "head_dim": (replace(MODEL, head_dim=32), "16 components a head, not 32"),
    "theta": (replace(MODEL, rope=rope(11000.0)), "another rotary embedding: it turns pair 1 by"),
    "pairing": (replace(MODEL, rope=rope(pairing="interleaved")), "pairs components half"),
    "scale": (replace(MODEL, rope=rope(scale=1.2)), "its scale is 1, not 1.2"),
    "partial": (replace(MODEL, rope=rope(pairs=4)), "turns 16 components, not 8"),
    "without": (replace(MODEL, rope=None), "a rotary embedding, not none"),
}
"""Models that differ from `MODEL` in one thing, and what a refusal says of it."""

BORDER = 2.0 ** (-100.5 / 64)
"""Lies between two steps of `Rope.canonical`."""
ALIKE = {
    "itself": MODEL,
    "dtype": replace(MODEL, dtype="bfloat16"),
    "half a percent": replace(MODEL, rope=rope(10050.0)),
    "scale": replace(MODEL, rope=rope(scale=1.005)),
}


@pytest.fixture
def built_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes sets built-in ones."""

    def ship(*sets: DictionarySet) -> None:
        shelf = {f"set-{number}": made for number, made in enumerate(sets)}
        monkeypatch.setattr(choosing, "builtin_sets", lambda: tuple(shelf))
        monkeypatch.setattr(choosing, "load_builtin", shelf.__getitem__)

    return ship


@pytest.mark.parametrize("name", KIND_OF)
@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_a_neighbour_is_refused(neighbour: str, name: str, built_in: Callable[..., None]) -> None:
    codec, dictionary = CODECS[name](), SETS[KIND_OF[name]]
    geometry, says = NEIGHBOURS[neighbour]
    with pytest.raises(DictionaryMismatch, match=rf"set of random: made .*{says}"):
        choose(codec, dictionary, geometry)
    with pytest.raises(DictionaryMismatch, match=rf"set mine.safetensors, of random: .*{says}"):
        check_model(dictionary, geometry, "mine.safetensors")
    built_in(dictionary)
    assert not fitting_builtin(geometry)
    with pytest.raises(ConfigurationError, match=f"lexico train --codec {KIND_OF[name]}` .*: none"):
        choose(codec, None, geometry)


@pytest.mark.parametrize("name", KIND_OF)
@pytest.mark.parametrize("geometry", ALIKE.values(), ids=ALIKE.keys())
def test_what_agrees_to_a_percent_is_taken(
    geometry: Geometry, name: str, built_in: Callable[..., None]
) -> None:
    dictionary = SETS[KIND_OF[name]]
    built_in(*SETS.values())
    for given_set in (None, dictionary):
        codec, found = choose(CODECS[name](), given_set, geometry)
        assert found is dictionary
        assert isinstance(codec, CODECS[name])


def test_a_last_bit_on_the_border_of_a_step_changes_nothing(built_in: Callable[..., None]) -> None:
    above, below = (Rope((BORDER * (1 + sign * 1e-6),)) for sign in (1, -1))
    assert above.canonical() != below.canonical()
    dictionary = saying(random_set(LAYERS, HEAD_DIM, kv_heads=KV_HEADS), above)
    built_in(dictionary)
    for given_set in (None, dictionary):
        assert choose(LexicoCodec(), given_set, replace(MODEL, rope=below))[1] is dictionary


def test_all_that_differs_is_named() -> None:
    other = Geometry(LAYERS + 2, KV_HEADS + 1, HEAD_DIM, "float16")
    says = "4 layers, not 6; 3 KV heads, not 4; a rotary embedding, not none"
    with pytest.raises(DictionaryMismatch, match=says):
        check_model(SETS["lexico"], other)


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_does_not_say_its_rotary_embedding(
    name: str, built_in: Callable[..., None]
) -> None:
    """It is taken where a user gives it, and found only for models without one."""
    silent, codec = saying(SETS[name], None), CODECS[name]()
    assert choose(codec, silent, MODEL)[1] is silent
    built_in(silent)
    with pytest.raises(ConfigurationError, match="none"):
        find(codec, MODEL, "it")
    assert find(codec, replace(MODEL, rope=None), "it") is silent


@pytest.mark.parametrize(
    "said",
    [
        {"inv_freq": [], "pairing": "half", "scale": 1.0},
        {"inv_freq": [1.0], "pairing": "third", "scale": 1.0},
        {"inv_freq": [1.0], "pairing": "half", "scale": -1.0},
        {"inv_freq": ["1"], "pairing": "half", "scale": 1.0},
        {"inv_freq": 1.0},
        {"pairing": "half"},
        {"inv_freq": [1.0], "theta": 1.0},
    ],
    ids=str,
)
def test_a_rotary_embedding_that_is_none(said: dict[str, Any]) -> None:
    made = SETS["lexico"]
    with pytest.raises(InvalidInput, match="dictionary set of random: rope"):
        check_model(replace(made, info=replace(made.info, rope=said)), MODEL)


@pytest.mark.parametrize("name", [name for name in CODECS if CODECS[name].needs_dictionary])
@pytest.mark.parametrize("other", SETS)
def test_a_set_for_another_codec(name: str, other: str, built_in: Callable[..., None]) -> None:
    codec, dictionary = CODECS[name](), SETS[other]
    if KIND_OF[name] == other:
        assert choose(codec, dictionary, MODEL)[1] is dictionary
        return
    says = f"lexico train --codec {KIND_OF[name]}`"
    with pytest.raises(DictionaryMismatch, match=f"{says}.*is for another codec"):
        choose(codec, dictionary, MODEL)
    with pytest.raises(DictionaryMismatch, match=f"{dictionary.holds}; make one with `{says}"):
        at_hand(codec, dictionary, type(dictionary))
    built_in(dictionary)
    with pytest.raises(ConfigurationError, match=f"preset it needs .*{says} .*other codecs: ran"):
        choose(codec, None, MODEL, "preset it")


def test_a_kind_that_is_asked_for() -> None:
    transformed, plain = SETS["lexico-residual"], SETS["lexico"]
    assert at_hand(ResidualCodec(), transformed, TransformSet).transform.run_layers == 2
    assert at_hand(LexicoCodec(), plain, AtomSet) is plain
    with pytest.raises(UnknownDictionary, match="codec lexico: no dictionary set was given"):
        at_hand(LexicoCodec(), None, AtomSet)
    assert isinstance(TransformSet.load(transformed.to_bytes()), TransformSet)
    with pytest.raises(DictionaryMismatch, match="one with a transform: it is for codec lexico-re"):
        AtomSet.load(transformed.to_bytes())
    with pytest.raises(DictionaryMismatch, match="as RoPE left them: it is for codec lexico and"):
        TransformSet.load(plain.to_bytes())


def test_layers_of_a_run_are_the_sets() -> None:
    dictionary = SETS["lexico-residual"]
    assert choose(ResidualCodec("near"), dictionary, MODEL)[0] == ResidualCodec("near", None, 2)
    assert choose(ResidualCodec(run_layers=2), dictionary, MODEL)[0].run_layers == 2
    with pytest.raises(DictionaryMismatch, match="runs of 2 layers"):
        choose(ResidualCodec(run_layers=1), dictionary, MODEL)
    whole = saying(residual_set(LAYERS, KV_HEADS, HEAD_DIM), MODEL.rope)
    assert choose(ResidualCodec(), whole, MODEL)[0] == ResidualCodec()


@pytest.mark.parametrize("name", ["raw", "lossless"])
def test_codecs_without_a_set(name: str) -> None:
    codec: Codec = CODECS[name]()
    assert choose(codec, None, MODEL) == (codec, None)
    assert choose(codec, bytes(32), MODEL) == (codec, bytes(32))  # the spec refuses it


def test_a_digest_is_not_looked_at() -> None:
    assert choose(LexicoCodec(), bytes(32), MODEL) == (LexicoCodec(), bytes(32))


def test_shipped_sets_fit_their_model_and_no_other() -> None:
    shipped = [load_builtin(name) for name in builtin_sets()]
    own = shipped[0].rope
    geometry = Geometry(30, 3, 64, "float16", own)
    assert [name for name, _ in fitting_builtin(geometry)] == list(builtin_sets())
    assert own is not None
    doubled = replace(own, inv_freq=tuple(f / 2 for f in own.inv_freq))
    assert not fitting_builtin(replace(geometry, rope=doubled))
    for dictionary in shipped:
        with pytest.raises(DictionaryMismatch, match="another rotary embedding"):
            check_model(dictionary, replace(geometry, rope=doubled))


ropes = st.builds(
    Rope,
    st.lists(st.just(0.0) | st.floats(1e-6, 10.0), min_size=1, max_size=4).map(tuple),
    st.sampled_from(["half", "interleaved"]),
    st.floats(0.1, 10.0),
)


@given(one=ropes, other=ropes)
def test_differences_of_ropes(one: Rope, other: Rope) -> None:
    assert one.difference(one) == ""
    assert bool(one.difference(other)) == bool(other.difference(one))
    if one.canonical() == other.canonical():
        assert one.difference(other) == ""  # what is in one step is within one


@given(one=ropes, octaves=st.floats(-0.1, 0.1))
def test_a_step_is_what_may_differ(one: Rope, octaves: float) -> None:
    other = Rope(tuple(f * 2**octaves for f in one.inv_freq), one.pairing, one.scale)
    if math.isclose(abs(octaves), 1 / 64, rel_tol=1e-3) or not any(one.inv_freq):
        return  # float32 may round it to either side
    assert (one.difference(other) == "") == (abs(octaves) < 1 / 64)
