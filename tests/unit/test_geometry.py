"""Geometries and ropes: caps, float32 rounding, canonical bytes."""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lexico_codec.geometry import DTYPES, Geometry, Rope
from lexico_proto.errors import ConfigurationError, ShapeMismatch

BASE = Geometry(4, 2, 64, "float16", Rope((1.0, 0.5, 0.25)))
# A change of each field, and of each field of the rope.
OTHERS = [
    replace(BASE, layers=5),
    replace(BASE, kv_heads=3),
    replace(BASE, head_dim=80),
    replace(BASE, dtype="bfloat16"),
    replace(BASE, dtype="float32"),
    replace(BASE, rope=None),
    replace(BASE, rope=Rope((1.0, 0.5))),
    replace(BASE, rope=Rope((1.0, 0.5, 0.125))),
    replace(BASE, rope=Rope((0.5, 1.0, 0.25))),
    replace(BASE, rope=Rope((1.0, 0.5, 0.25), "interleaved")),
    replace(BASE, rope=Rope((1.0, 0.5, 0.25), "half", 1.5)),
]


def test_any_field_changes_the_digest() -> None:
    for a, b in itertools.combinations([BASE, *OTHERS], 2):
        assert a != b
        assert a.digest() != b.digest()
        assert a.canonical() != b.canonical()


def test_digest_is_pinned() -> None:
    """It lies in every frame header."""
    assert len(BASE.digest()) == 16
    assert BASE.digest().hex() == "d4999a998224cb68beed1d26ebfb9c97"
    assert BASE.canonical() == (
        struct.pack("<HHH8s", 4, 2, 64, b"float16")
        + struct.pack("<BhH", 1, 0, 3)
        + struct.pack("<3h", 0, -64, -128)
    )


def test_no_bytes_of_a_geometry_are_those_of_another() -> None:
    """Names of element types are of several lengths: with frequencies behind, none is another's."""
    for first, second in itertools.permutations(DTYPES, 2):
        assert not first.ljust(8, "\0").startswith(second.ljust(8, "\0"))
        assert replace(BASE, dtype=first).digest() != replace(BASE, dtype=second).digest()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_of_a_token(dtype: str) -> None:
    geometry = Geometry(3, 5, 80, dtype)
    assert geometry.torch_dtype == getattr(torch, dtype)
    assert geometry.itemsize == {"float32": 4, "float16": 2, "bfloat16": 2}.get(dtype, 1)
    assert geometry.token_bytes == 3 * 2 * 5 * 80 * geometry.itemsize


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", 0),
        ("layers", -1),
        ("layers", 513),
        ("kv_heads", 0),
        ("kv_heads", 1025),
        ("head_dim", 0),
        ("head_dim", 1025),
        ("head_dim", 1 << 40),
        ("dtype", "float64"),
        ("dtype", "torch.float16"),
        ("dtype", ""),
    ],
)
def test_geometry_out_of_range_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(ShapeMismatch, match=field):
        replace(BASE, **{field: value})


def test_rope_wider_than_the_head() -> None:
    rope = Rope(tuple(1.0 for _ in range(33)))
    with pytest.raises(ShapeMismatch, match="66 of 64"):
        Geometry(1, 1, 64, rope=rope)
    assert Geometry(1, 1, 66, rope=rope).rope == rope


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (((),), "empty"),
        (((1.0,), "other"), "pairing"),
        (((-1.0,),), "finite"),
        (((math.nan,),), "finite"),
        (((math.inf,),), "finite"),
        (((1e39,),), "float32"),
        ((("1",),), "float32"),
        (((1.0,), "half", 0.0), "finite"),
        (((1.0,), "half", -1.0), "finite"),
        (((1.0,), "half", math.nan), "finite"),
        (((1.0,), "half", math.inf), "finite"),
        (((1.0,), "half", 1e39), "float32"),
        (((1.0,), "half", 1e-60), "finite"),
    ],
    ids=str,
)
def test_rope_that_cannot_be_used(arguments: tuple[Any, ...], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        Rope(*arguments)


@given(
    inv_freq=st.lists(st.floats(0, 1e30), min_size=1, max_size=8),
    scale=st.floats(2**-20, 2**20),
)
def test_rope_is_what_float32_holds(inv_freq: list[float], scale: float) -> None:
    """So that a rope that has travelled equals the one that was sent."""
    rope = Rope(tuple(inv_freq), "half", scale)
    assert rope.inv_freq == tuple(torch.tensor(inv_freq, dtype=torch.float32).tolist())
    again = Rope(rope.inv_freq, "half", rope.scale)
    assert (again, again.canonical()) == (rope, rope.canonical())
    assert rope.rotary_dim == 2 * len(inv_freq)


def test_equal_ropes_have_equal_bytes() -> None:
    negative, positive = Rope((-0.0, 1.0)), Rope((0.0, 1.0))
    assert negative == positive
    assert negative.canonical() == positive.canonical()


def test_the_last_bit_of_a_frequency_names_no_other_rope() -> None:
    """Libraries differ there, and their nodes must share pages all the same."""
    exact = [100000.0 ** (-i / 32) for i in range(32)]
    near = [struct.unpack("<f", struct.pack("<f", f * (1 + 2e-7)))[0] for f in exact]
    assert Rope(tuple(exact)).canonical() == Rope(tuple(near)).canonical()
    other = [f * 1.05 for f in exact]
    assert Rope(tuple(exact)).canonical() != Rope(tuple(other)).canonical()
