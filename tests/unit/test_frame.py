"""Frames under attack: whatever differs from what was packed is an error, never wrong bytes."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from lexico_codec import frame as frame_module
from lexico_codec.frame import (
    DTYPE_CODES,
    HEADER_BYTES,
    MAGIC,
    FrameHeader,
    expect_frame,
    frame_parts,
    pack_frame,
    parse_frame,
    parse_runs,
)
from lexico_proto.errors import DamagedFrame, FrameMismatch, NewerFrame

HEADER = FrameHeader(
    codec_id=2,
    dtype="bfloat16",
    sink_tokens=4,
    first_layer=6,
    layers=3,
    kv_heads=5,
    head_dim=80,
    first_token=512,
    tokens=256,
    page_key=bytes(range(32)),
    dictionary=bytes(range(100, 132)),
    geometry=bytes(range(200, 216)),
)
BODY = bytes(range(64))
FIELDS_END = HEADER_BYTES - 8
# offset and struct code of each number in the header
OFFSETS = {
    "version": (4, "<H"),
    "header_bytes": (6, "<H"),
    "codec_id": (8, "<H"),
    "dtype": (10, "<B"),
    "sink_tokens": (11, "<B"),
    "first_layer": (12, "<H"),
    "layers": (14, "<H"),
    "kv_heads": (16, "<H"),
    "head_dim": (18, "<H"),
    "first_token": (20, "<I"),
    "tokens": (24, "<I"),
    "reserved": (28, "<I"),
    "body_bytes": (32, "<Q"),
}

HEADERS = st.builds(
    FrameHeader,
    codec_id=st.integers(0, 2**16 - 1),
    dtype=st.sampled_from(sorted(DTYPE_CODES)),
    sink_tokens=st.integers(0, 255),
    first_layer=st.integers(0, 2**16 - 1),
    layers=st.integers(0, 2**16 - 1),
    kv_heads=st.integers(0, 2**16 - 1),
    head_dim=st.integers(0, 2**16 - 1),
    first_token=st.integers(0, 2**32 - 1),
    tokens=st.integers(0, 2**32 - 1),
    page_key=st.binary(min_size=32, max_size=32),
    dictionary=st.binary(min_size=32, max_size=32),
    geometry=st.binary(min_size=16, max_size=16),
)


def sign(frame: bytes | bytearray) -> bytes:
    """The frame with a checksum that holds: what an attacker who can write to the store sends."""
    digest = xxhash.xxh3_64(bytes(frame[:FIELDS_END]) + bytes(frame[HEADER_BYTES:])).intdigest()
    return bytes(frame[:FIELDS_END]) + struct.pack("<Q", digest) + bytes(frame[HEADER_BYTES:])


def forged(field: str, value: int) -> bytes:
    frame = bytearray(pack_frame(HEADER, BODY))
    offset, code = OFFSETS[field]
    struct.pack_into(code, frame, offset, value)
    return sign(frame)


def check_damaged(data: bytes | bytearray | memoryview) -> None:
    """DamagedFrame itself: FrameMismatch would say that the bytes are sound."""
    for read in (parse_frame, lambda frame: expect_frame(frame, HEADER)):
        with pytest.raises(DamagedFrame) as caught:
            read(data)
        assert type(caught.value) is DamagedFrame


@given(header=HEADERS, body=st.binary(max_size=300))
def test_round_trip(header: FrameHeader, body: bytes) -> None:
    frame = pack_frame(header, body)
    assert len(frame) == HEADER_BYTES + len(body)
    read, content = parse_frame(frame)
    assert read == header
    assert bytes(content) == body
    assert bytes(expect_frame(bytes(frame), header)) == body


@given(st.binary(max_size=300), st.integers(HEADER_BYTES, 300), st.integers(1, 300))
def test_a_frame_in_several_places(body: bytes, first: int, next_: int) -> None:
    view = memoryview(pack_frame(HEADER, body))
    runs = [view[:first], view[first : first + next_], view[first + next_ :]]
    assert parse_runs(runs) == HEADER
    damaged = [*runs[:-1], memoryview(bytes(runs[-1]) + b"x")]
    with pytest.raises(DamagedFrame):
        parse_runs(damaged)


def test_bytes_are_pinned() -> None:
    """The format of docs/format.md. Other bytes are another version."""
    frame = bytes(pack_frame(HEADER, BODY))
    assert HEADER_BYTES == 128
    assert frame[:4] == MAGIC == b"LXKV"
    values = {name: struct.unpack_from(code, frame, at)[0] for name, (at, code) in OFFSETS.items()}
    assert values == {
        "version": 1,
        "header_bytes": 128,
        "codec_id": 2,
        "dtype": 2,
        "sink_tokens": 4,
        "first_layer": 6,
        "layers": 3,
        "kv_heads": 5,
        "head_dim": 80,
        "first_token": 512,
        "tokens": 256,
        "reserved": 0,
        "body_bytes": 64,
    }
    assert frame[40:72] == HEADER.page_key
    assert frame[72:104] == HEADER.dictionary
    assert frame[104:120] == HEADER.geometry
    assert frame[120:128] == struct.pack("<Q", xxhash.xxh3_64_intdigest(frame[:120] + BODY))
    assert frame[128:] == BODY
    assert sign(frame) == frame


def test_any_byte_that_changes_is_seen() -> None:
    sound = pack_frame(HEADER, BODY)
    for at in range(len(sound)):
        for flip in (0x01, 0x10, 0x80, 0xFF):
            damaged = bytearray(sound)
            damaged[at] ^= flip
            check_damaged(damaged)


@settings(deadline=None)
@given(body=st.binary(max_size=400), flip=st.integers(1, 255), data=st.data())
def test_any_byte_of_any_frame(body: bytes, flip: int, data: st.DataObject) -> None:
    damaged = bytearray(pack_frame(HEADER, body))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= flip
    check_damaged(damaged)


def test_any_truncation_is_seen() -> None:
    sound = pack_frame(HEADER, BODY)
    for end in range(len(sound)):
        check_damaged(sound[:end])
        check_damaged(sound[len(sound) - end :])


@given(st.binary(min_size=1, max_size=300))
def test_any_extension_is_seen(more: bytes) -> None:
    sound = bytes(pack_frame(HEADER, BODY))
    check_damaged(sound + more)
    check_damaged(more + sound)


@given(first=st.integers(0, 191), second=st.integers(0, 191))
def test_two_bytes_that_change_places(first: int, second: int) -> None:
    swapped = bytearray(pack_frame(HEADER, BODY))
    swapped[first], swapped[second] = swapped[second], swapped[first]
    if swapped == pack_frame(HEADER, BODY):
        return
    check_damaged(swapped)


@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_are_damaged(noise: bytes, magic: bool) -> None:
    check_damaged(MAGIC + noise if magic else noise)


@given(
    noise=st.binary(min_size=HEADER_BYTES, max_size=300),
    keep=st.sampled_from([0, 4, 8]),
)
def test_random_headers_with_a_sound_checksum(noise: bytes, keep: int) -> None:
    """Damaged, elsewhere or newer, however much of the header is right."""
    sound = bytes(pack_frame(HEADER, b""))
    data = bytearray(sound[:keep] + noise[keep:])
    if keep == 8:
        struct.pack_into("<IQ", data, 28, 0, len(data) - HEADER_BYTES)
    with pytest.raises((DamagedFrame, NewerFrame)):
        expect_frame(sign(data), HEADER)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 0),
        ("header_bytes", 0),
        ("header_bytes", 127),
        ("header_bytes", 192),
        ("dtype", 3),
        ("dtype", 255),
        ("reserved", 1),
        ("reserved", 2**32 - 1),
        ("body_bytes", 0),
        ("body_bytes", 63),
        ("body_bytes", 65),
        ("body_bytes", 2**32 + 64),
        ("body_bytes", 2**63),
        ("body_bytes", 2**64 - 1),
    ],
)
def test_forged_headers(field: str, value: int) -> None:
    check_damaged(forged(field, value))


@pytest.mark.parametrize("version", [3, 4, 255, 256, 2**16 - 1])
def test_a_newer_version_is_told_from_a_damaged_one(version: int) -> None:
    """By the checksum, whatever else the newer version does with the header."""
    newer = forged("version", version)
    for field, value in (("version", version), ("header_bytes", 256), ("body_bytes", 1)):
        offset, code = OFFSETS[field]
        changed = bytearray(newer)
        struct.pack_into(code, changed, offset, value)
        for read in (parse_frame, lambda frame: expect_frame(frame, HEADER)):
            with pytest.raises(NewerFrame, match=f"version {version}"):
                read(sign(changed))
    for at in range(len(newer)):
        damaged = bytearray(newer)
        damaged[at] ^= 0x10
        check_damaged(damaged)
    check_damaged(newer[:-1])
    check_damaged(newer + b"x")


@pytest.mark.parametrize("dtype", DTYPE_CODES)
def test_each_element_type_has_one_version(dtype: str) -> None:
    """A reader of version 1 alone takes its frames of 8 bits for newer ones, not for damage."""
    version = 2 if dtype.startswith("float8") else 1
    frame = pack_frame(replace(HEADER, dtype=dtype), BODY)
    assert struct.unpack_from("<H", frame, 4)[0] == version
    changed = bytearray(frame)
    struct.pack_into("<H", changed, 4, 3 - version)
    check_damaged(sign(changed))


def test_other_magic() -> None:
    for magic in (b"LXKW", b"\0\0\0\0", b"VKXL"):
        check_damaged(sign(magic + bytes(pack_frame(HEADER, BODY))[4:]))


CHANGES: list[tuple[str, Any]] = [
    ("codec_id", 1),
    ("dtype", "float16"),
    ("sink_tokens", 0),
    ("first_layer", 7),
    ("layers", 2),
    ("kv_heads", 6),
    ("head_dim", 64),
    ("first_token", 0),
    ("tokens", 128),
    ("page_key", bytes(32)),
    ("dictionary", bytes(32)),
    ("geometry", bytes(16)),
]


def test_changes_name_every_field() -> None:
    assert {field for field, _ in CHANGES} == set(vars(HEADER))


@pytest.mark.parametrize(("field", "value"), CHANGES)
def test_sound_frame_of_elsewhere(field: str, value: Any) -> None:
    frame = pack_frame(replace(HEADER, **{field: value}), BODY)
    with pytest.raises(FrameMismatch, match=f"another {field}$"):
        expect_frame(frame, HEADER)


def test_mismatch_names_all_that_differs() -> None:
    frame = pack_frame(replace(HEADER, layers=1, head_dim=1), BODY)
    with pytest.raises(FrameMismatch, match="another layers, head_dim"):
        expect_frame(frame, HEADER)


def test_length_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_module, "MAX_PARSED_FRAME_BYTES", HEADER_BYTES + 64)
    assert parse_frame(pack_frame(HEADER, BODY))[0] == HEADER
    check_damaged(pack_frame(HEADER, BODY + b"x"))


def test_declared_lengths_allocate_nothing() -> None:
    attacks = [
        forged(field, 2 ** (8 * struct.calcsize(code)) - 1)
        for field, (_, code) in OFFSETS.items()
        if field != "sink_tokens"
    ]
    tracemalloc.start()
    try:
        for data in attacks:
            with pytest.raises((DamagedFrame, NewerFrame)):
                expect_frame(data, HEADER)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_body_is_a_view() -> None:
    frame = bytearray(pack_frame(HEADER, BODY))
    body = parse_frame(frame)[1]
    frame[HEADER_BYTES] = 0x55
    assert body[0] == 0x55


@given(body=st.binary(max_size=3000))
def test_parts_of_a_frame_are_the_frame(body: bytes) -> None:
    view = memoryview(body)
    head, rest = frame_parts(HEADER, view)
    assert head + rest == pack_frame(HEADER, body)
    assert len(head) == HEADER_BYTES
    assert rest.obj is body
    assert expect_frame(head + rest, HEADER) == body


def test_frames_stand_alone() -> None:
    first, second = pack_frame(HEADER, BODY), pack_frame(HEADER, BODY[::-1])
    assert bytes(expect_frame(first, HEADER)) == BODY
    assert bytes(expect_frame(second, HEADER)) == BODY[::-1]
