"""lossless: every bit comes back, in fewer bytes than raw.

Keys and values of a layer have few exponents. Each element is turned left by one bit, so that its
highest byte is the exponent (of float16 with three bits of the mantissa) and the sign lies behind
the mantissa; then byte k of all elements is one plane. An element of 8 bits is one byte, and all of
it is coded: its sign costs what it would apart. Planes that deflate makes smaller are
deflated, mantissas lie as they are. Each layer's keys and values have planes, and so Huffman codes,
of their own: their scales differ. Bytes are coded one by one, or in runs: longer matches are not
there.

Measured on SmolLM2-135M (pages of 64 tokens) and left out: component by component, the difference
from the token before or the XOR with it make planes larger, or no smaller; the median exponent of
each component taken off saves 0.9 % of the tensor, with the usual sign of each too 1.5 % of float16
and less of bfloat16. The same cache rounded to float8_e4m3fn takes 83.3 % of its bytes, to
float8_e5m2 71.5 %; with the median exponent and the usual sign of each component taken off it would
take 80.7 % and 68.6 %.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from lexico_codec.codecs.codec import Codec, Place, tables_of
from lexico_codec.geometry import Geometry
from lexico_codec.memory import CacheMemory
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.tensors import bytes_of, tensor_from
from lexico_proto.errors import DamagedFrame

Words = npt.NDArray[np.unsignedinteger[Any]]
Plane = npt.NDArray[np.uint8]

_WORDS: Final[dict[int, np.dtype[Any]]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
}
_SIZE: Final = np.dtype("<u4")
_RAW_DEFLATE: Final = -15  # windows of 32 KiB, neither header nor checksum: the frame has one
_TRIAL_BYTES: Final = 4096


@dataclass(frozen=True)
class LosslessCodec(Codec):
    """Body: how many bytes each plane takes, then the planes."""

    name: ClassVar[str] = "lossless"
    codec_id: ClassVar[int] = 5
    needs_dictionary: ClassVar[bool] = False
    lossless: ClassVar[bool] = True

    def sink_tokens(self, first_token: int, tokens: int) -> int:
        """None apart: every token is exact."""
        return 0

    def encoded_bytes(self, geometry: Geometry, tokens: int) -> int:
        """The most: of planes that do not shrink."""
        plain = tokens * geometry.token_bytes // geometry.layers
        return plain + 2 * geometry.itemsize * _SIZE.itemsize

    def _encode(self, source: CacheMemory, place: Place, dictionary: DictionarySet | None) -> bytes:
        """Deflates the planes that become smaller; zlib lets other threads run meanwhile."""
        group = source.read()
        words = np.frombuffer(bytes_of(group), _WORDS[group.element_size()])
        parts = [
            _shrunk(plane)
            for table in words.reshape(2 * group.shape[0], -1)
            for plane in _planes(table)
        ]
        return b"".join([np.array([len(part) for part in parts], _SIZE).tobytes(), *parts])

    def _decode(
        self,
        body: memoryview,
        place: Place,
        dictionary: DictionarySet | None,
        target: CacheMemory,
        shape: tuple[int, ...],
    ) -> None:
        """Restores layers, bit for bit, once all of their planes have proved to be whole."""
        itemsize, tables = target.dtype.itemsize, 2 * shape[0]
        rows = math.prod(shape) // tables
        header = tables * itemsize * _SIZE.itemsize
        if len(body) < header:
            raise DamagedFrame(f"lossless body of {len(body)} bytes: sizes alone are {header}")
        sizes = np.frombuffer(body, _SIZE, tables * itemsize).reshape(tables, itemsize)
        if int(sizes.sum(dtype=np.int64)) != len(body) - header or int(sizes.max()) > rows:
            raise DamagedFrame(f"lossless body of {len(body)} bytes, its sizes say otherwise")
        wanted = tables_of(target.layers)
        words = np.empty((len(wanted), rows), _WORDS[itemsize])
        start = header + int(sizes[: wanted.start].sum(dtype=np.int64))
        for table, of_planes in zip(words, sizes[wanted.start : wanted.stop].tolist(), strict=True):
            planes = table.view(np.uint8).reshape(rows, itemsize)
            for index, size in enumerate(of_planes):
                planes[:, index] = _restored(body[start : start + size], rows)
                start += size
        _turn_back(words)
        own = (len(wanted) // 2, *shape[1:])
        target.write(tensor_from(words.data.cast("B"), target.dtype, own))


def _planes(table: Words) -> Plane:
    """`[itemsize, elements]`: byte k of all elements that were turned left by a bit."""
    turned = table << 1 | table >> (8 * table.itemsize - 1)
    return np.ascontiguousarray(turned.view(np.uint8).reshape(-1, table.itemsize).T)


def _turn_back(words: Words) -> None:
    """Turns every element right by a bit, in place."""
    signs = words << (8 * words.itemsize - 1)
    np.right_shift(words, 1, out=words)
    np.bitwise_or(words, signs, out=words)


def _shrunk(plane: Plane) -> bytes:
    """The plane deflated, or as it lies where that saves less than a 64th."""
    if len(plane) > 2 * _TRIAL_BYTES:  # a few bytes show that mantissas are not worth the time
        middle = len(plane) // 2
        trial = plane[middle : middle + _TRIAL_BYTES]
        if len(_deflate(trial)) >= len(trial):
            return plane.tobytes()
    deflated = _deflate(plane)
    if len(deflated) < len(plane) // 4:  # a Huffman code cannot say less than a bit: runs can
        deflated = min(deflated, _deflate(plane, zlib.Z_RLE), key=len)
    saved = len(plane) - len(deflated)
    return deflated if 64 * saved >= len(plane) else plane.tobytes()


def _deflate(plane: Plane, strategy: int = zlib.Z_HUFFMAN_ONLY) -> bytes:
    # Level 9 of memory is a Huffman code for 32 Ki bytes; smaller windows only take more time.
    coder = zlib.compressobj(6, zlib.DEFLATED, _RAW_DEFLATE, 9, strategy)
    return coder.compress(plane.data) + coder.flush()


def _restored(part: memoryview, size: int) -> Plane:
    """The plane of `size` bytes that a part stands for; of that size it lies there as it is.

    Raises:
        DamagedFrame: no deflate stream, or one of another size. No more than `size` + 1 bytes are
            ever made of it.
    """
    if len(part) == size:
        return np.frombuffer(part, np.uint8)
    decoder = zlib.decompressobj(_RAW_DEFLATE)
    try:
        plane = decoder.decompress(part, size + 1)
    except zlib.error as error:
        raise DamagedFrame(f"lossless plane that cannot be inflated: {error}") from error
    if len(plane) != size or not decoder.eof or decoder.unused_data:
        raise DamagedFrame(f"lossless plane of {len(plane)} bytes or more, needs {size}")
    return np.frombuffer(plane, np.uint8)
