"""The service in memory: for tests of engines, and for trying the client without a server."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

from lexico_client._transport import Server, check_size
from lexico_codec.formats import formats_to_wire, own_formats
from lexico_codec.namespaces import namespace_digest
from lexico_codec.pages import encode_group
from lexico_codec.pieces import Piece, Pieces
from lexico_codec.put_messages import PageEnd, parse_put
from lexico_codec.sets.choose import check_model
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.slices import Slice, SlicedPage, check_assembly
from lexico_codec.spec import CacheSpec
from lexico_codec.tensors import tensor_from
from lexico_codec.upload import PageAssembler, checked_keys
from lexico_codec.wire import described, spec_from_wire
from lexico_proto.errors import (
    InvalidInput,
    StreamTooLong,
    StreamTruncated,
    UnknownDictionary,
)
from lexico_proto.limits import MAX_DICTIONARY_BYTES, PIECE_BYTES
from lexico_proto.v1 import dictionaries_pb2 as dictionaries
from lexico_proto.v1 import offload_pb2 as offload
from lexico_proto.v1 import reload_pb2 as reload
from lexico_proto.v1 import versions_pb2 as versions

_FOR_EVER: Final = 10 * 365 * 86400.0


class InMemoryTransport:
    """A transport that encodes, keeps and gives pages in this process. One tenant, no expiry, no
    bound.

    Encoding blocks the event loop: this is no server.
    """

    def __init__(self) -> None:
        self.pages: dict[bytes, list[bytes]] = {}
        """Page key → the page's frames, group by group. Tests may damage them."""
        self.dictionaries: dict[bytes, DictionarySet] = {}
        """Digest → registered set."""
        self.published: dict[tuple[bytes, str], tuple[bytes, float]] = {}
        """Name of a model and codec → digest of the set for them, and when it was published."""
        self._namespaces: dict[bytes, tuple[reload.StoredNamespace, set[bytes]]] = {}
        """Namespace → what it is made of, and the keys of its pages."""
        self._sliced: dict[tuple[bytes, str, bytes], SlicedPage] = {}
        """Page key, dtype and assembly → a page that lacks slices."""

    async def match(self, request: reload.MatchRequest, timeout: float) -> reload.MatchResponse:
        """Which pages are kept."""
        check_size(request, "match")
        present = [key in self.pages for key in request.page_keys]
        return reload.MatchResponse(leading=[*present, False].index(False), present=present)

    async def namespaces(
        self, request: reload.NamespacesRequest, timeout: float
    ) -> reload.NamespacesResponse:
        """What pages are kept of. They leave only where a test removes them."""
        check_size(request, "namespaces")
        kept = [
            message
            for message, keys in self._namespaces.values()
            if not keys.isdisjoint(self.pages)
        ]
        response = reload.NamespacesResponse(namespaces=kept, total=len(kept))
        if request.page_key:
            stored = self._namespaces.get(request.namespace, (None, set()))[1]
            response.cause = reload.ABSENCE_CAUSE_NO_TRACE
            if request.page_key in stored:
                response.cause = reload.ABSENCE_CAUSE_LEFT
            if request.page_key in self.pages:
                response.cause = reload.ABSENCE_CAUSE_PRESENT
        return response

    async def get(
        self, request: reload.GetRequest, timeout: float
    ) -> AsyncGenerator[reload.GetResponse, None]:
        """Frames, group by group; a page that is not kept, or of other groups, is a Miss."""
        check_size(request, "get")
        pages = len(request.page_keys)
        for group in range(request.groups):
            for page, key in enumerate(request.page_keys[:pages]):
                frames = self.pages.get(key, [])
                if len(frames) != request.groups:
                    pages = page
                    miss = reload.Miss(page=page, reason=reload.MISS_REASON_ABSENT)
                    yield reload.GetResponse(miss=miss)
                    break
                for piece in _pieces(page, group, frames[group]):
                    yield reload.GetResponse(frame=piece)

    async def put(
        self, messages: AsyncGenerator[bytes, None], timeout: float
    ) -> offload.PutResponse:
        """Checks, encodes and keeps the pages, each as soon as it is whole."""
        async with aclosing(messages):
            first = await anext(messages, None)
            header = None if first is None else parse_put(first)
            if not isinstance(header, offload.PutHeader):
                raise InvalidInput("put: the first message must be the header")
            spec = _checked_spec(header)
            dictionary = None
            if spec.codec.needs_dictionary:
                dictionary = self._dictionary(spec.dictionary)
                check_model(dictionary, spec.whole_geometry)
            results = []
            for page, key in zip(header.pages, header.page_keys, strict=True):
                pieces, checksum = await _page(messages, page, spec.page_bytes)
                if not spec.is_whole:
                    name = (key, spec.geometry.dtype, header.assembly)
                    sliced = self._sliced.setdefault(name, SlicedPage(spec.whole, page))
                    try:
                        sliced.add(Slice.of(spec), checksum, pieces)
                    except InvalidInput:
                        del self._sliced[name]
                        raise
                    if not sliced.complete:
                        received = offload.PAGE_OUTCOME_RECEIVED
                        results.append(offload.PageResult(page=page, outcome=received))
                        continue
                    pieces = self._sliced.pop(name).take()
                frames = _encoded(spec.whole, key, page, Pieces(pieces), dictionary)
                results.append(self._keep(page, key, frames))
                self._note(spec.whole, key)
            if await anext(messages, None) is not None:
                raise StreamTooLong("put: the upload carries more than its pages")
        return offload.PutResponse(pages=results)

    async def register(
        self, messages: AsyncGenerator[dictionaries.RegisterRequest, None], timeout: float
    ) -> dictionaries.RegisterResponse:
        """Keeps a set."""
        async with aclosing(messages):
            first = await anext(messages, None)
            if first is None or first.WhichOneof("part") != "header":
                raise InvalidInput("register: the first message must be the header")
            if first.header.artefact_bytes > MAX_DICTIONARY_BYTES:
                raise InvalidInput(f"register: {first.header.artefact_bytes} bytes are too many")
            stream = _ByteStream(messages)
            data = await stream.take(first.header.artefact_bytes)
            await stream.expect_end()
        dictionary = DictionarySet.load(bytes(data))
        if dictionary.digest != first.header.digest:
            raise InvalidInput("register: the digest is not the artefact's")
        added = self.dictionaries.setdefault(dictionary.digest, dictionary) is dictionary
        return dictionaries.RegisterResponse(added=added)

    async def fetch(
        self, request: dictionaries.FetchRequest, timeout: float
    ) -> AsyncGenerator[dictionaries.FetchResponse, None]:
        """A kept set."""
        data = self._dictionary(request.digest).to_bytes()
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            yield dictionaries.FetchResponse(artefact_bytes=len(data), data=piece)

    async def list_dictionaries(self, timeout: float) -> dictionaries.ListResponse:
        """The sets kept."""
        infos = [
            dictionaries.DictionaryInfo(
                digest=digest,
                artefact_bytes=len(kept.to_bytes()),
                model=kept.info.model,
                layers=kept.layers,
                kv_heads=kept.info.kv_heads,
                head_dim=kept.head_dim,
            )
            for digest, kept in self.dictionaries.items()
        ]
        return dictionaries.ListResponse(dictionaries=infos)

    async def publish(
        self, request: dictionaries.PublishRequest, timeout: float
    ) -> dictionaries.PublishResponse:
        """Keeps which set a model takes."""
        if not request.digest:
            gone = [key for key in self.published if key[0] in request.models]
            codecs = {self.published.pop(key) and key[1] for key in gone}
            return dictionaries.PublishResponse(codecs=sorted(codecs))
        codecs_of = self._dictionary(request.digest).codecs
        for key in ((model, codec) for model in request.models for codec in codecs_of):
            _, first = self.published.get(key, (b"", time.time()))
            self.published[key] = request.digest, first
        return dictionaries.PublishResponse(codecs=codecs_of)

    async def find(
        self, request: dictionaries.FindRequest, timeout: float
    ) -> dictionaries.FindResponse:
        """The set that is published for the first of the names. Pages have no expiry."""
        for model in request.models:
            digest, first = self.published.get((model, request.codec), (b"", 0.0))
            if digest:
                age = max(0.0, time.time() - first)
                return dictionaries.FindResponse(digest=digest, age_s=age, page_ttl_s=_FOR_EVER)
        return dictionaries.FindResponse(page_ttl_s=_FOR_EVER)

    async def describe(
        self, server: Server, request: versions.DescribeRequest, timeout: float
    ) -> versions.DescribeResponse:
        """This process is both servers."""
        return versions.DescribeResponse(server=formats_to_wire(own_formats()))

    async def close(self) -> None:
        """Keeps everything: another client may use it next."""

    def _dictionary(self, digest: bytes) -> DictionarySet:
        if digest not in self.dictionaries:
            raise UnknownDictionary(
                f"dictionary set {digest.hex()[:16]} is not registered: register it first"
            )
        return self.dictionaries[digest]

    def _note(self, spec: CacheSpec, key: bytes) -> None:
        message = described(spec)
        message.digest, message.stored_s = namespace_digest(spec.namespace), time.time()
        _, keys = self._namespaces.pop(spec.namespace, (message, set()))
        self._namespaces[spec.namespace] = message, keys | {key}

    def _keep(self, page: int, key: bytes, frames: list[bytes]) -> offload.PageResult:
        if self.pages.setdefault(key, frames) is not frames:
            return offload.PageResult(page=page, outcome=offload.PAGE_OUTCOME_PRESENT)
        return offload.PageResult(
            page=page, outcome=offload.PAGE_OUTCOME_STORED, stored_bytes=sum(map(len, frames))
        )


async def _page(
    messages: AsyncIterator[bytes], page: int, page_bytes: int
) -> tuple[list[Piece], int]:
    """The bytes of a page or a slice, and their checksum."""
    assembler = PageAssembler(page, page_bytes)
    while (message := await anext(messages, None)) is not None:
        part = parse_put(message)
        if isinstance(part, PageEnd):
            return assembler.end(part.page, part.checksum), part.checksum
        if not isinstance(part, memoryview):
            raise InvalidInput("put: after the header come data and page ends alone")
        assembler.add(part)
    raise assembler.cut()


def _encoded(
    spec: CacheSpec, key: bytes, page: int, data: Pieces, dictionary: DictionarySet | None
) -> list[bytes]:
    """The frames of a page."""
    frames, start = [], 0
    for group in range(spec.groups):
        end = start + spec.group_bytes(group)
        shape, dtype = spec.group_shape(group), spec.geometry.torch_dtype
        tensor = tensor_from(data.cut(start, end), dtype, shape)
        frames.append(bytes(encode_group(spec, key, page, group, tensor, dictionary)))
        start = end
    return frames


class _ByteStream:
    """The data messages of a dictionary set as one run of bytes."""

    def __init__(self, messages: AsyncIterator[dictionaries.RegisterRequest]) -> None:
        self._messages = messages
        self._held = bytearray()

    async def take(self, count: int) -> bytearray:
        while len(self._held) < count:
            message = await anext(self._messages, None)
            if message is None:
                raise StreamTruncated(f"the upload ended {count - len(self._held)} bytes early")
            data = message.data
            if message.WhichOneof("part") != "data" or len(data) > PIECE_BYTES:
                raise InvalidInput(f"an upload holds data messages of at most {PIECE_BYTES} bytes")
            self._held += data
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    async def expect_end(self) -> None:
        if self._held or await anext(self._messages, None) is not None:
            raise StreamTooLong("the upload goes on after its declared bytes")


def _checked_spec(header: offload.PutHeader) -> CacheSpec:
    spec = spec_from_wire(header.spec)
    check_assembly(spec, header.assembly)
    checked_keys(
        spec,
        header.token_ids,
        header.pages,
        header.page_keys,
        first_page=header.first_page,
        parent_key=header.parent_key,
        inputs=header.page_inputs,
    )
    return spec


def _pieces(page: int, group: int, frame: bytes) -> list[reload.FramePart]:
    return [
        reload.FramePart(
            page=page,
            group=group,
            frame_bytes=len(frame),
            data=frame[start : start + PIECE_BYTES],
        )
        for start in range(0, len(frame), PIECE_BYTES)
    ]
