"""What processes tell each other of themselves."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lexico_client import Described
from lexico_codec.codecs import CODECS
from lexico_codec.formats import (
    MAX_NAMED,
    Formats,
    formats_from_wire,
    formats_to_wire,
    own_formats,
)
from lexico_codec.frame import VERSION
from lexico_codec.geometry import DTYPES
from lexico_proto.v1 import versions_pb2 as pb

OWN = own_formats()
NUMBERS = st.lists(st.integers(0, (1 << 32) - 1), max_size=MAX_NAMED).map(tuple)
NAMES = st.text(max_size=MAX_NAMED)
FORMATS = st.builds(
    Formats,
    release=NAMES,
    frames=NUMBERS,
    codecs=st.lists(NAMES, max_size=MAX_NAMED).map(tuple),
    sets=NUMBERS,
    dtypes=st.lists(NAMES, max_size=MAX_NAMED).map(tuple),
)


def test_own_formats_are_those_of_the_code() -> None:
    assert OWN.codecs == tuple(sorted(CODECS))
    assert max(OWN.frames) == VERSION
    assert OWN.reads(OWN)


@given(FORMATS)
def test_a_round_trip(formats: Formats) -> None:
    wire = formats_to_wire(formats).SerializeToString()
    assert formats_from_wire(pb.Formats.FromString(wire)) == formats


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_what_is_too_long_is_cut(many: int, long: int) -> None:
    came = formats_from_wire(
        pb.Formats(
            release="r" * long,
            frames=range(many),
            codecs=["c" * long] * many,
            dtypes=["d" * long] * many,
        )
    )
    assert max(len(came.release), len(came.frames), len(came.codecs), len(came.dtypes)) <= MAX_NAMED
    assert all(len(name) <= MAX_NAMED for name in (*came.codecs, *came.dtypes))


def test_servers_of_the_same_formats_refuse_nothing() -> None:
    assert Described(OWN, OWN).refusals("lossless") == []


def test_servers_that_do_not_say_refuse_nothing() -> None:
    assert Described(None, None).refusals("lossless") == []


def test_a_codec_that_is_not_known() -> None:
    former = replace(OWN, codecs=("raw",))
    assert Described(former, former).refusals("lossless") == [
        "the offload server does not know codec lossless: upgrade it"
    ]
    assert Described(OWN, OWN).refusals("later") == [
        "this node does not know codec later: upgrade it",
        "the offload server does not know codec later: upgrade it",
    ]


def test_an_element_type_that_a_server_does_not_know() -> None:
    """One that does not say knows those that every release does."""
    former = replace(OWN, dtypes=())
    assert Described(OWN, OWN).refusals("lossless", "float8_e5m2") == []
    assert Described(former, former).refusals("lossless", "bfloat16") == []
    assert Described(former, former).refusals("lossless") == []
    assert Described(former, former).refusals("lossless", "float8_e4m3fn") == [
        "the offload server knows no caches of float8_e4m3fn: upgrade it",
        "the reload server knows no caches of float8_e4m3fn: upgrade it",
    ]
    assert set(OWN.dtypes) == set(DTYPES)


def test_frames_that_are_not_read() -> None:
    later = replace(OWN, frames=(VERSION, VERSION + 1))
    assert Described(OWN, later).refusals("lossless") == [
        "this node does not read the frames that the offload server writes: upgrade it",
        "the reload server does not read the frames that the offload server writes: upgrade it",
    ]
    assert Described(later, OWN).refusals("lossless") == []
