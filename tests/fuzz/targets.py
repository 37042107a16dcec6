"""What is attacked: functions of bytes that may raise errors of our tree, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Final

import xxhash
from google.protobuf.message import DecodeError

from lexico_client._frames import FrameAssembler
from lexico_codec.frame import HEADER_BYTES, FrameHeader, pack_frame, parse_frame
from lexico_codec.keys import page_keys
from lexico_codec.put_messages import PageEnd, parse_put
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.upload import PageAssembler
from lexico_codec.wire import spec_from_wire, spec_to_wire
from lexico_proto.errors import LexicoError
from lexico_proto.v1 import offload_pb2, reload_pb2, types_pb2
from tests.support import goldens

Target = Callable[[bytes], None]


@cache
def _goldens() -> list[goldens.Golden]:
    makers = (
        goldens.raw,
        goldens.lossless,
        goldens.lexico,
        goldens.adaptive,
        goldens.packed,
        goldens.residual,
    )
    return [make() for make in makers]


@cache
def _header(name: str) -> FrameHeader:
    golden = next(golden for golden in _goldens() if golden.name == name)
    return parse_frame(golden.encode())[0]


def frames(data: bytes) -> None:
    """A frame as it comes from the store."""
    if len(data) >= HEADER_BYTES:  # most attacks would get no further than the checksum
        fields, body = data[: HEADER_BYTES - 8], data[HEADER_BYTES:]
        mended = xxhash.xxh3_64_intdigest(fields + body).to_bytes(8, "little")
        with suppress(LexicoError):
            parse_frame(fields + mended + body)
    parse_frame(data)


def bodies(data: bytes) -> None:
    """A sound frame whose body is anything: what a codec reads. The first byte picks the codec."""
    if not data:
        return
    golden = _goldens()[data[0] % len(_goldens())]
    golden.decode(pack_frame(_header(golden.name), data[1:]))


def sets(data: bytes) -> None:
    """A dictionary set as a tenant registers it."""
    DictionarySet.load(data)


def specs(data: bytes) -> None:
    """A spec as a caller sends it, and the keys of a short prompt."""
    spec = spec_from_wire(types_pb2.CacheSpec.FromString(data))
    page_keys(spec, range(min(2 * spec.page_tokens, 1000)))


def puts(data: bytes) -> None:
    """The messages of an upload: each has its length before it, in two bytes."""
    assembler = PageAssembler(0, 3000)
    for message in _pieces(data):
        part = parse_put(message)
        if isinstance(part, memoryview):
            assembler.add(part)
        elif isinstance(part, PageEnd):
            assembler.end(part.page, part.checksum)
            assembler = PageAssembler(part.page + 1, 3000)
        elif isinstance(part, offload_pb2.PutHeader):
            spec_from_wire(part.spec)


def gets(data: bytes) -> None:
    """The messages of a reload, as a node reads them."""
    spec = _goldens()[0].spec
    assembler = FrameAssembler(spec, 3)
    for message in _pieces(data):
        assembler.accept(reload_pb2.GetResponse.FromString(message))


def _pieces(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "little")
        yield data[at + 2 : at + 2 + size]
        at += 2 + size


TARGETS: Final[dict[str, Target]] = {
    target.__name__: target for target in (frames, bodies, sets, specs, puts, gets)
}


def attempt(target: Target, data: bytes) -> None:
    """One attack. Whatever is neither success nor a refusal leaves it."""
    try:
        target(data)
    except (LexicoError, DecodeError):
        return


def seeds(name: str) -> Iterator[bytes]:
    """Sound inputs to begin with."""
    for number, golden in enumerate(_goldens()):
        frame = golden.encode()
        if name == "frames":
            yield frame
        elif name == "bodies":
            yield bytes([number]) + frame[HEADER_BYTES:]
        elif name == "sets" and golden.dictionary is not None:
            yield golden.dictionary.to_bytes()
        elif name == "specs":
            yield spec_to_wire(golden.spec).SerializeToString()
        elif name == "puts":
            header = offload_pb2.PutHeader(spec=spec_to_wire(golden.spec), pages=[0])
            yield _joined(
                offload_pb2.PutRequest(header=header).SerializeToString(),
                offload_pb2.PutRequest(data=b"x" * 3000).SerializeToString(),
                offload_pb2.PutRequest(page_end=offload_pb2.PageEnd(page=0)).SerializeToString(),
            )
        elif name == "gets":
            part = reload_pb2.FramePart(frame_bytes=len(frame), data=frame[:60_000])
            miss = reload_pb2.Miss(page=1)
            yield _joined(
                reload_pb2.GetResponse(frame=part).SerializeToString(),
                reload_pb2.GetResponse(miss=miss).SerializeToString(),
            )


def _joined(*messages: bytes) -> bytes:
    return b"".join(len(m).to_bytes(2, "little") + m for m in messages)
