"""Identities: the namespace is a digest of named parts, and a salt keeps pages apart."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexico_codec.codecs import LexicoCodec, RawCodec
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.identity import Identity
from lexico_codec.limits import MAX_LORA_BYTES, MAX_SALT_BYTES
from lexico_codec.spec import CacheSpec, make_spec
from lexico_codec.spec_text import spec_from_json, spec_to_json
from lexico_codec.wire import spec_from_wire, spec_to_wire
from lexico_proto.errors import InvalidInput

GEOMETRY = Geometry(3, 2, 16, "float16", Rope((1.0, 0.5)))
BASE = CacheSpec(bytes(range(32)), GEOMETRY, LexicoCodec(4), b"d" * 32, page_tokens=16)

IDENTITIES = st.builds(
    Identity,
    weights=st.binary(max_size=3),
    lora=st.text(max_size=2),
    geometry=st.sampled_from([GEOMETRY, replace(GEOMETRY, rope=None), Geometry(2, 2, 16)]),
    shard=st.tuples(*[st.integers(0, 2)] * 4),
    codec=st.text("abs", max_size=3),
    codec_config=st.text("abs", max_size=3),
    dictionary=st.binary(max_size=2),
    page_tokens=st.integers(1, 3),
    group_layers=st.integers(1, 3),
    salt=st.binary(max_size=3) | st.sampled_from([b"salt", b"\x04"]),
)


def test_the_namespace_without_a_salt_is_that_of_the_first_format() -> None:
    parts = [part.value for part in BASE.identity.parts]
    data = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    first = hashlib.blake2b(data, digest_size=32, person=b"lexico-namespace").digest()
    assert len(parts) == 8
    assert BASE.namespace == BASE.identity.namespace == first
    assert replace(BASE, salt="").namespace == first
    salted = data + b"".join(struct.pack("<Q", len(part)) + part for part in (b"salt", b"mine"))
    expected = hashlib.blake2b(salted, digest_size=32, person=b"lexico-namespace").digest()
    assert replace(BASE, salt="mine").namespace == expected


@given(one=IDENTITIES, other=IDENTITIES)
def test_two_identities_that_differ_have_two_namespaces(one: Identity, other: Identity) -> None:
    same = one == other
    assert (one.namespace == other.namespace) == same
    assert (one.difference(other) == ()) == same


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (replace(BASE, weights=bytes(32)), "weights"),
        (replace(BASE, lora="red"), "lora"),
        (replace(BASE, geometry=replace(GEOMETRY, dtype="bfloat16")), "geometry"),
        (replace(BASE, codec=LexicoCodec(5)), "codec config"),
        (replace(BASE, dictionary=bytes(32)), "dictionary"),
        (replace(BASE, page_tokens=32), "pages"),
        (replace(BASE, salt="mine"), "salt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_part_that_differs_has_a_name(changed: CacheSpec, part: str) -> None:
    assert BASE.identity.difference(changed.identity) == (part,)
    assert changed.identity.difference(BASE.identity) == (part,)


def test_parts_say_what_they_are() -> None:
    said = {part.name: part.says for part in replace(BASE, salt=b"\x01").identity.parts}
    assert said["geometry"].startswith("3 layers, 2 KV heads of 16, float16, rotary embedding half")
    assert said["lora"] == "none"
    assert said["salt"] == "01"


def test_a_salt_is_bytes_or_text() -> None:
    assert replace(BASE, salt="ü") == replace(BASE, salt="ü".encode())
    assert len({replace(BASE, salt=salt).namespace for salt in ("", "a", "b", "ab")}) == 4
    longest = replace(BASE, salt=b"s" * MAX_SALT_BYTES)
    assert spec_from_wire(spec_to_wire(longest)) == longest
    made = make_spec(weights=bytes(32), geometry=GEOMETRY, codec="raw", salt="a")
    assert made == CacheSpec(bytes(32), GEOMETRY, RawCodec(), salt=b"a")


@pytest.mark.parametrize("salt", [b"s" * (MAX_SALT_BYTES + 1), "ü" * 129, 5, None, "\ud800"])
def test_other_salts_are_refused(salt: Any) -> None:
    with pytest.raises(InvalidInput, match="salt"):
        replace(BASE, salt=salt)


UNUSABLE: list[tuple[dict[str, Any], str]] = [
    ({"lora": 5}, "lora"),
    ({"lora": b"red"}, "lora"),
    ({"lora": None}, "lora"),
    ({"lora": "\ud800"}, "lora identity is no UTF-8"),
    ({"lora": "x" * (MAX_LORA_BYTES + 1)}, "lora"),
    ({"weights": "a" * 32}, "weights"),
    ({"weights": bytearray(32)}, "weights"),
    ({"weights": None}, "weights"),
    ({"dictionary": ""}, "no dictionary"),
    ({"dictionary": None}, "no dictionary"),
    ({"page_tokens": 1.5}, "page_tokens"),
    ({"page_tokens": True}, "page_tokens"),
    ({"page_tokens": "64"}, "page_tokens"),
    ({"page_tokens": 0}, "page_tokens"),
    ({"group_layers": 1.0}, "group_layers"),
    ({"group_layers": True}, "group_layers"),
]


@pytest.mark.parametrize(("value", "named"), UNUSABLE)
def test_other_values_of_a_wrong_kind_are_refused(value: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {"weights": bytes(32), "geometry": GEOMETRY, "codec": "raw"}
    with pytest.raises(InvalidInput, match=named):
        make_spec(**given | value)
    with pytest.raises(InvalidInput, match=named):
        CacheSpec(**given | {"codec": RawCodec()} | value)


def test_an_empty_salt_is_not_on_the_wire() -> None:
    message = spec_to_wire(BASE)
    before = message.SerializeToString(deterministic=True)
    message.ClearField("salt")
    assert message.SerializeToString(deterministic=True) == before


def test_specs_as_text() -> None:
    salted = replace(BASE, salt=b"\x00\xff", lora="red")
    assert spec_from_json(spec_to_json(salted)) == salted
    for text in ("", "[]", '{"weights": 5}', '{"colour": "red"}', "{}", "[" * 5000):
        with pytest.raises(InvalidInput):
            spec_from_json(text)
