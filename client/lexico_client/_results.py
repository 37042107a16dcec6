"""What the client answers."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum

from lexico_codec.formats import Formats, own_formats
from lexico_proto.errors import LexicoError
from lexico_proto.v1 import dictionaries_pb2 as dictionaries


@dataclass(frozen=True)
class Match:
    """Which pages of a sequence the service holds."""

    tokens: int
    """Leading tokens that can be loaded."""
    pages: int
    """Leading pages that can be loaded."""
    present: tuple[bool, ...]
    """For every full page of the sequence, whether it is stored."""
    page_keys: tuple[bytes, ...]
    """The key of every full page, 32 bytes each."""


class PageOutcome(StrEnum):
    """What became of a page that was offered."""

    STORED = "stored"
    """Encoded and committed by this call."""
    PRESENT = "present"
    """Was in the store already."""
    IN_PROGRESS = "in-progress"
    """Another call is encoding it."""
    RECEIVED = "received"
    """Received; its encoding was not waited for."""


@dataclass(frozen=True)
class PutSeconds:
    """Seconds that an offload took here, and that each stage took there.

    The service's stages are summed over pages, and those of different pages overlap.
    """

    total: float = 0.0
    """From the call to its answer, at the client."""
    match: float = 0.0
    """Asking which pages are missing."""
    receive: float = 0.0
    """At the ingress: waiting for bytes and copying them into group buffers."""
    place: float = 0.0
    """At the ingress: into shared memory."""
    encoder: float = 0.0
    """At the ingress: from the call of the encoder to its answer."""
    encode: float = 0.0
    """In the encoder: codes and frames."""
    commit: float = 0.0
    """In the encoder: the store's transaction."""


@dataclass(frozen=True)
class PutReport:
    """What an offload did."""

    tokens: int
    """Tokens that the pages cover."""
    pages: tuple[PageOutcome, ...]
    """For every page, in order."""
    bytes_sent: int
    """Bytes of cache that went over the wire."""
    bytes_stored: int
    """Bytes that the pages stored by this call take in the store."""
    seconds: PutSeconds


@dataclass(frozen=True)
class LoadSeconds:
    """Seconds that a load took. Transfer and decoding overlap."""

    total: float = 0.0
    match: float = 0.0
    """Asking which pages are stored."""
    dictionary: float = 0.0
    """Bringing the dictionary set, where it was not at hand."""
    decode: float = 0.0
    """Verifying and decoding frames, in the worker thread."""


@dataclass(frozen=True)
class Loaded:
    """What a load brought. Nothing at all is a miss: recompute."""

    tokens: int
    """Leading tokens whose keys and values are in the caller's memory; 0 for a miss."""
    pages: int
    matched_pages: int
    """Leading pages that the service had said it holds."""
    reason: LexicoError | None
    """What made it less than matched, or kept `Match` from answering; None if nothing did."""
    bytes_received: int
    """Bytes of frames that came over the wire."""
    seconds: LoadSeconds
    unfinished: threading.Event | None = None
    """None but where a thread was still in the memory of a page that was not loaded, or in the
    target, when the deadline came. Until this is set, the memory that the target gave for pages
    from `pages` on must not be used for anything else."""


@dataclass(frozen=True)
class DictionaryEntry:
    """A dictionary set that the service holds."""

    digest: bytes
    artefact_bytes: int
    model: str
    """Model that it was trained on."""
    layers: int
    kv_heads: int
    head_dim: int
    shared: bool
    """Registered by the operator for every tenant."""


@dataclass(frozen=True)
class Described:
    """What the servers are. A part of None is a server from before they said so, or one that this
    client has no address of."""

    reload: Formats | None
    offload: Formats | None

    def refusals(self, codec: str, dtype: str = "") -> list[str]:
        """Why this node and these servers cannot share pages of a codec, one line each; empty where
        they can, or where a server does not say.

        Args:
            codec: its name, `spec.codec.name`.
            dtype: element type of the cache, `spec.geometry.dtype`; empty for one that every
                release knows.
        """
        node, writer, found = own_formats(), self.offload, []
        if not node.writes(codec):
            found.append(f"this node does not know codec {codec}: upgrade it")
        if writer is not None and not writer.writes(codec):
            found.append(f"the offload server does not know codec {codec}: upgrade it")
        for name, reader in (("this node", node), ("the reload server", self.reload)):
            if writer is not None and reader is not None and not reader.reads(writer):
                found.append(
                    f"{name} does not read the frames that the offload server writes: upgrade it"
                )
        for name, server in (("offload", writer), ("reload", self.reload)):
            if dtype and server is not None and not server.takes(dtype):
                found.append(f"the {name} server knows no caches of {dtype}: upgrade it")
        return found


def entry_of(info: dictionaries.DictionaryInfo) -> DictionaryEntry:
    """The entry that a message stands for."""
    return DictionaryEntry(
        digest=info.digest,
        artefact_bytes=info.artefact_bytes,
        model=info.model,
        layers=info.layers,
        kv_heads=info.kv_heads,
        head_dim=info.head_dim,
        shared=info.shared,
    )
