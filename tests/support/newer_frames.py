"""Frames as a later version would write them: sound, and of a version or codec not known here."""

from __future__ import annotations

import struct

import xxhash

from lexico_codec.frame import HEADER_BYTES


def of_version(frame: bytes | memoryview, version: int) -> bytes:
    """The frame with another version, its checksum made anew."""
    return _changed(frame, 4, version)


def of_codec(frame: bytes | memoryview, codec_id: int) -> bytes:
    """The frame with another codec id, its checksum made anew."""
    return _changed(frame, 8, codec_id)


def _changed(frame: bytes | memoryview, offset: int, value: int) -> bytes:
    data, end = bytearray(frame), HEADER_BYTES - 8
    struct.pack_into("<H", data, offset, value)
    digest = xxhash.xxh3_64_intdigest(bytes(data[:end]) + bytes(data[HEADER_BYTES:]))
    struct.pack_into("<Q", data, end, digest)
    return bytes(data)
