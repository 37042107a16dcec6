"""An object as bytes that LMCache's own adapters keep: the frames that the service would store.

    magic "LXOB", version u16, frames u16, bytes of all u64, bytes of each frame u64 ...,
    XXH3-64 of what stands before, then the frames

Little-endian. Each frame has a checksum of its own and names its page, geometry, codec and set, so
bytes of another object, model or codec are refused. What follows the last frame is not looked at:
adapters read into buffers that are longer.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from lexico_client.engines.lmcache._config import SerdeConfig
from lexico_client.engines.lmcache._pages import ObjectKey, Page, Pages
from lexico_codec.checksum import Checksum
from lexico_codec.frame import HEADER_BYTES
from lexico_codec.keys import page_keys
from lexico_codec.limits import MAX_LAYERS
from lexico_codec.pages import decode_group, encode_group
from lexico_codec.presets import codec_named, spoken
from lexico_codec.sets.choose import choose
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import (
    DamagedFrame,
    NewerFrame,
    Unsupported,
)
from lexico_proto.limits import MAX_GROUPS

MAGIC: Final = b"LXOB"
VERSION: Final = 1

_HEAD: Final = struct.Struct("<4sHHQ")
_SIZE: Final = struct.Struct("<Q")
_PLANE_SIZES: Final = 2 * 4 * 4
"""Most bytes that codec lossless adds to a layer."""
_OVERHEAD: Final = (
    _HEAD.size + _SIZE.size + MAX_GROUPS * (_SIZE.size + HEADER_BYTES) + MAX_LAYERS * _PLANE_SIZES
)


class ObjectCoding:
    """Codes objects and decodes them. Any thread may call it."""

    def __init__(self, settings: SerdeConfig) -> None:
        """
        Raises:
            ConfigurationError: naming the setting.
            LexicoError: the model or the set that is named cannot be used.
        """
        self._settings = settings
        self._pages = Pages(settings)
        self._asked = codec_named(settings.codec, settings.codec_config).without_positions()
        self._given = settings.dictionary_file()
        self._lock = threading.Lock()
        self._specs: dict[CacheSpec, tuple[CacheSpec, DictionarySet | None]] = {}

    def most_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """The most that an object takes; with `padded_to` just that.

        Args:
            shape, dtype: of its tensor.
        """
        raw = math.prod(shape) * dtype.itemsize
        part = self._settings.padded_to
        return max(1, int(raw * part)) if part else raw + _OVERHEAD

    def encode(self, key: ObjectKey, tensor: Tensor, out: memoryview) -> int:
        """Writes an object's bytes.

        Args:
            key: its name.
            tensor: its content.
            out: writable, `most_bytes` or more.

        Returns:
            How many bytes it took.

        Raises:
            Unsupported: it does not fit, or is none that can be coded.
            NonFiniteCache: NaN or infinity in it.
            LexicoError: it cannot be coded.
        """
        page = self._pages.page(key, tensor.shape, tensor.dtype)
        spec, dictionary = self._coded(page)
        layout, page_key = self._pages.layout, _key(spec, page)
        memory = layout.pages(page.elements(tensor), page.shape)
        frames = [
            encode_group(spec, page_key, 0, group, memory[layers.start : layers.stop], dictionary)
            for group, layers in enumerate(map(spec.group_range, range(spec.groups)))
        ]
        head = _head(frames)
        size = len(head) + sum(map(len, frames))
        room = self.most_bytes(tensor.shape, tensor.dtype) if self._settings.padded_to else len(out)
        if size > min(room, len(out)):
            raise Unsupported(
                f"an object of {tensor.nbytes} bytes takes {size} coded, and has room for {room}"
                + ("; give a larger `padded_to`" if self._settings.padded_to else "")
            )
        place = 0
        for part in (head, *frames):
            out[place : place + len(part)] = part
            place += len(part)
        if not self._settings.padded_to:
            return size
        out[place:room] = bytes(room - place)
        return room

    def decode(self, key: ObjectKey, data: memoryview, into: Tensor) -> None:
        """Fills an object from its bytes; where it raises, the content is undefined.

        Args:
            key: its name.
            data: what was kept, not trusted; longer, if a buffer is.
            into: the object's tensor.

        Raises:
            DamagedFrame: the bytes fail a check.
            NewerFrame: sound bytes of a later release.
            FrameMismatch: sound bytes of another object, model, codec or set.
            LexicoError: there are none that could be of this object.
        """
        page = self._pages.page(key, into.shape, into.dtype)
        spec, dictionary = self._coded(page)
        layout, page_key = self._pages.layout, _key(spec, page)
        frames = _frames(data)
        if len(frames) != spec.groups:
            raise DamagedFrame(f"an object of {len(frames)} frames, needs {spec.groups}")
        into = page.elements(into)
        room = layout.room(into, page.shape)
        for group, frame in enumerate(frames):
            layers = spec.group_range(group)
            out = room[layers.start : layers.stop]
            decode_group(spec, page_key, 0, group, frame, out, dictionary)
        layout.put(room, into, page.shape)

    def _coded(self, page: Page) -> tuple[CacheSpec, DictionarySet | None]:
        """What an object is coded with."""
        base = page.spec
        with self._lock:
            if base not in self._specs:
                if len(self._specs) > 1024:  # as many callers as there are salts
                    self._specs.clear()
                self._specs[base] = self._chosen(page)
            return self._specs[base]

    def _chosen(self, page: Page) -> tuple[CacheSpec, DictionarySet | None]:
        base, asked = page.spec, self._asked
        if page.is_slice and asked.needs_dictionary:
            raise Unsupported(
                f"codec {self._settings.codec}: LMCache stores each rank's part of a model by "
                "itself, and sets are of whole models; give codec lossless"
            )
        codec, found = choose(asked, self._given, base.geometry, spoken(self._settings.codec))
        dictionary = found if isinstance(found, DictionarySet) and asked.needs_dictionary else None
        spec = CacheSpec(
            weights=base.weights,
            geometry=base.geometry,
            codec=codec,
            dictionary=b"" if dictionary is None else dictionary.digest,
            page_tokens=base.page_tokens,
            salt=base.salt,
        )
        return spec, dictionary


def _key(spec: CacheSpec, page: Page) -> bytes:
    return page_keys(spec, page.token_ids, page.inputs)[0]


def _head(frames: Sequence[bytes]) -> bytes:
    sizes = b"".join(_SIZE.pack(len(frame)) for frame in frames)
    whole = _HEAD.size + len(sizes) + _SIZE.size + sum(map(len, frames))
    fields = _HEAD.pack(MAGIC, VERSION, len(frames), whole) + sizes
    return fields + _SIZE.pack(_checksum(fields))


def _frames(data: memoryview) -> list[memoryview]:
    """The frames of an object, none of which was looked into.

    Raises:
        DamagedFrame, NewerFrame: as `ObjectCoding.decode`.
    """
    if len(data) < _HEAD.size:
        raise DamagedFrame(f"an object of {len(data)} bytes: the head alone has {_HEAD.size}")
    magic, version, count, whole = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise DamagedFrame("not an object of this serde: the magic bytes are missing")
    if version > VERSION:
        raise NewerFrame(f"an object of version {version}: upgrade this serde to use it")
    end = _HEAD.size + count * _SIZE.size
    if version != VERSION or not 1 <= count <= MAX_GROUPS or len(data) < end + _SIZE.size:
        raise DamagedFrame(
            f"an object of version {version} with {count} frames: no writer makes it"
        )
    if _SIZE.unpack_from(data, end)[0] != _checksum(data[:end]):
        raise DamagedFrame("the checksum of the object's head does not hold")
    sizes = [each for (each,) in _SIZE.iter_unpack(data[_HEAD.size : end])]
    place = end + _SIZE.size
    if place + sum(sizes) != whole or whole > len(data):
        raise DamagedFrame(f"an object of {whole} bytes, of which {len(data)} are there")
    frames = []
    for size in sizes:
        frames.append(data[place : place + size])
        place += size
    return frames


def _checksum(data: bytes | memoryview) -> int:
    checksum = Checksum()
    checksum.add(data)
    return checksum.value()
