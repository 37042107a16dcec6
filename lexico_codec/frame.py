"""The frame: one layer group of one page, encoded, in bytes that can be checked.

docs/format.md describes the bytes. Parsing trusts nothing: every length is checked against the
input before it is used, and any difference from what the caller expects is an error, never a guess.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lexico_codec.checksum import Checksum
from lexico_codec.limits import MAX_PARSED_FRAME_BYTES
from lexico_proto.errors import DamagedFrame, FrameMismatch, NewerFrame

MAGIC: Final = b"LXKV"
VERSION: Final = 1
"""Of frames of the element types that every release knows."""
FLOAT8_VERSION: Final = 2
"""Of those of 8 bits: a reader that does not know these leaves a newer version alone, and would
take a type that it does not know for damage."""

_FIELDS: Final = struct.Struct("<4sHHHBBHHHHIIIQ32s32s16s")
_CHECKSUM: Final = struct.Struct("<Q")
HEADER_BYTES: Final = _FIELDS.size + _CHECKSUM.size

DTYPE_CODES: Final[dict[str, int]] = {
    "float32": 0,
    "float16": 1,
    "bfloat16": 2,
    "float8_e4m3fn": 3,
    "float8_e5m2": 4,
}
VERSIONS: Final[dict[str, int]] = {
    name: FLOAT8_VERSION if name.startswith("float8") else VERSION for name in DTYPE_CODES
}
"""Element type → the version that its frames are written with, and read in alone."""


@dataclass(frozen=True)
class FrameHeader:
    """What a frame says of itself."""

    codec_id: int
    dtype: str
    sink_tokens: int
    """Leading tokens of the frame that are stored exact."""
    first_layer: int
    """Counted within the shard."""
    layers: int
    kv_heads: int
    head_dim: int
    first_token: int
    """Position in the sequence."""
    tokens: int
    page_key: bytes
    dictionary: bytes
    """Digest of the dictionary set, or 32 zero bytes."""
    geometry: bytes
    """`Geometry.digest()`, 16 bytes."""

    def _pack(self, body_bytes: int) -> bytes:
        return _FIELDS.pack(
            MAGIC,
            VERSIONS[self.dtype],
            HEADER_BYTES,
            self.codec_id,
            DTYPE_CODES[self.dtype],
            self.sink_tokens,
            self.first_layer,
            self.layers,
            self.kv_heads,
            self.head_dim,
            self.first_token,
            self.tokens,
            0,
            body_bytes,
            self.page_key,
            self.dictionary,
            self.geometry,
        )


def pack_frame(header: FrameHeader, body: bytes | bytearray | memoryview) -> bytes:
    """A whole frame in memory of its own: header, XXH3-64 of header and body, body.

    Args:
        header: the frame's identity.
        body: the codec's bytes, contiguous.
    """
    return b"".join(frame_parts(header, body))


def frame_parts(
    header: FrameHeader, body: bytes | bytearray | memoryview
) -> tuple[bytes, memoryview]:
    """The two runs of bytes that make a frame, as for `pack_frame`; the body is not copied."""
    view = memoryview(body).cast("B")
    fields = header._pack(len(view))
    return fields + _CHECKSUM.pack(_checksum(fields, view)), view


def parse_frame(frame: bytes | bytearray | memoryview) -> tuple[FrameHeader, memoryview]:
    """Header and body of a frame whose checksum holds.

    The checksum has the same place and covers the same bytes in every version, so a newer frame can
    be told from one whose version was damaged.

    Raises:
        DamagedFrame: too short, too long, another magic or length, a checksum that does not hold,
            or a field that no writer makes.
        NewerFrame: sound, of a version that this build does not read.
    """
    view = memoryview(frame).cast("B")
    return parse_runs([view]), view[HEADER_BYTES:]


def parse_runs(runs: Sequence[memoryview]) -> FrameHeader:
    """Header of a frame whose checksum holds, and whose bytes lie in several places.

    Args:
        runs: the bytes, in order; all of the header, or of what is shorter, is in the first.

    Raises:
        DamagedFrame, NewerFrame: as `parse_frame`.
    """
    size = sum(map(len, runs))
    if not HEADER_BYTES <= size <= MAX_PARSED_FRAME_BYTES:
        raise DamagedFrame(
            f"a frame of {size} bytes: outside {HEADER_BYTES}..{MAX_PARSED_FRAME_BYTES}"
        )
    (
        magic,
        version,
        header_bytes,
        codec_id,
        dtype_code,
        sink_tokens,
        first_layer,
        layers,
        kv_heads,
        head_dim,
        first_token,
        tokens,
        reserved,
        body_bytes,
        page_key,
        dictionary,
        geometry,
    ) = _FIELDS.unpack_from(runs[0])
    if magic != MAGIC:
        raise DamagedFrame("not a frame: the magic bytes are missing")
    if version in VERSIONS.values() and body_bytes != size - HEADER_BYTES:
        raise DamagedFrame(f"frame declares {body_bytes} body bytes, has {size - HEADER_BYTES}")
    checked = (runs[0][: _FIELDS.size], runs[0][HEADER_BYTES:], *runs[1:])
    if _CHECKSUM.unpack_from(runs[0], _FIELDS.size)[0] != _checksum(*checked):
        raise DamagedFrame("frame checksum does not hold")
    if version > FLOAT8_VERSION:
        raise NewerFrame(
            f"frame version {version}: this build reads versions {VERSION} and {FLOAT8_VERSION}; "
            "upgrade it to use this page"
        )
    if version not in VERSIONS.values() or header_bytes != HEADER_BYTES or reserved != 0:
        raise DamagedFrame(
            f"frame version {version}, {header_bytes} header bytes, reserved field {reserved}: "
            "no writer makes it"
        )
    dtype = next((name for name, code in DTYPE_CODES.items() if code == dtype_code), None)
    if dtype is None or VERSIONS[dtype] != version:
        raise DamagedFrame(f"frame dtype code {dtype_code} is unknown in version {version}")
    return FrameHeader(
        codec_id=codec_id,
        dtype=dtype,
        sink_tokens=sink_tokens,
        first_layer=first_layer,
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        first_token=first_token,
        tokens=tokens,
        page_key=bytes(page_key),
        dictionary=bytes(dictionary),
        geometry=bytes(geometry),
    )


def expect_frame(frame: bytes | bytearray | memoryview, expected: FrameHeader) -> memoryview:
    """Body of a sound frame that is exactly the one expected.

    Raises:
        DamagedFrame: the bytes fail a check.
        NewerFrame: a sound frame of a newer version.
        FrameMismatch: a sound frame of another page, geometry, codec, dictionary set or place.
    """
    header, body = parse_frame(frame)
    if header != expected:
        different = [
            name for name, value in vars(expected).items() if getattr(header, name) != value
        ]
        raise FrameMismatch(f"frame of another {', '.join(different)}")
    return body


def _checksum(*runs: bytes | memoryview) -> int:
    checksum = Checksum()
    for run in runs:
        checksum.add(run)
    return checksum.value()
