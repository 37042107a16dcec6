"""What a build of the package reads and writes: what two processes tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Final

from lexico_codec.codecs import CODECS
from lexico_codec.frame import VERSION, VERSIONS
from lexico_codec.sets import FORMATS
from lexico_proto.v1 import versions_pb2 as pb

DISTRIBUTION: Final = "lexico-offload"
MAX_NAMED: Final = 64
"""Most codecs, or formats of one kind, that are taken from another process; most characters of a
name too."""


@dataclass(frozen=True)
class Formats:
    """What one process reads and writes."""

    release: str
    """Of the package; empty where it runs from a tree that is not installed."""
    frames: tuple[int, ...]
    """Versions of frames that are read, of caches in 16 and 32 bits. The highest is written."""
    codecs: tuple[str, ...]
    """Names of the codecs that are read and written."""
    sets: tuple[int, ...]
    """Formats of dictionary sets that are read."""
    dtypes: tuple[str, ...] = ()
    """Element types of caches that are read and written, by name. Empty where a process does not
    say: it knows those of 16 and 32 bits."""

    def writes(self, codec: str) -> bool:
        """Whether pages of a codec can be encoded here."""
        return codec in self.codecs

    def takes(self, dtype: str) -> bool:
        """Whether pages of caches of an element type are read and written here."""
        return dtype in (self.dtypes or [name for name, at in VERSIONS.items() if at == VERSION])

    def reads(self, writer: Formats) -> bool:
        """Whether frames of another process are read here."""
        return not writer.frames or max(writer.frames) in self.frames


@cache
def own_formats() -> Formats:
    """Of this process."""
    try:
        release = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        release = ""
    return Formats(release, (VERSION,), tuple(sorted(CODECS)), FORMATS, tuple(VERSIONS))


def formats_to_wire(formats: Formats) -> pb.Formats:
    """As a message."""
    return pb.Formats(
        release=formats.release,
        frames=formats.frames,
        codecs=formats.codecs,
        sets=formats.sets,
        dtypes=formats.dtypes,
    )


def formats_from_wire(message: pb.Formats) -> Formats:
    """From a message of another process, which is not trusted: what is too long is cut."""
    return Formats(
        release=message.release[:MAX_NAMED],
        frames=tuple(message.frames[:MAX_NAMED]),
        codecs=tuple(name[:MAX_NAMED] for name in message.codecs[:MAX_NAMED]),
        sets=tuple(message.sets[:MAX_NAMED]),
        dtypes=tuple(name[:MAX_NAMED] for name in message.dtypes[:MAX_NAMED]),
    )
