from lexico_proto.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Durability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DURABILITY_COMMITTED: _ClassVar[Durability]
    DURABILITY_RECEIVED: _ClassVar[Durability]

class PageOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PAGE_OUTCOME_UNSPECIFIED: _ClassVar[PageOutcome]
    PAGE_OUTCOME_STORED: _ClassVar[PageOutcome]
    PAGE_OUTCOME_PRESENT: _ClassVar[PageOutcome]
    PAGE_OUTCOME_IN_PROGRESS: _ClassVar[PageOutcome]
    PAGE_OUTCOME_RECEIVED: _ClassVar[PageOutcome]
DURABILITY_COMMITTED: Durability
DURABILITY_RECEIVED: Durability
PAGE_OUTCOME_UNSPECIFIED: PageOutcome
PAGE_OUTCOME_STORED: PageOutcome
PAGE_OUTCOME_PRESENT: PageOutcome
PAGE_OUTCOME_IN_PROGRESS: PageOutcome
PAGE_OUTCOME_RECEIVED: PageOutcome

class PutRequest(_message.Message):
    __slots__ = ("header", "data", "page_end")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PAGE_END_FIELD_NUMBER: _ClassVar[int]
    header: PutHeader
    data: bytes
    page_end: PageEnd
    def __init__(self, header: _Optional[_Union[PutHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., page_end: _Optional[_Union[PageEnd, _Mapping]] = ...) -> None: ...

class PageEnd(_message.Message):
    __slots__ = ("page", "checksum")
    PAGE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    page: int
    checksum: int
    def __init__(self, page: _Optional[int] = ..., checksum: _Optional[int] = ...) -> None: ...

class PutHeader(_message.Message):
    __slots__ = ("spec", "token_ids", "pages", "page_keys", "durability", "page_inputs", "first_page", "parent_key", "assembly")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    PAGE_KEYS_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    PAGE_INPUTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_PAGE_FIELD_NUMBER: _ClassVar[int]
    PARENT_KEY_FIELD_NUMBER: _ClassVar[int]
    ASSEMBLY_FIELD_NUMBER: _ClassVar[int]
    spec: _types_pb2.CacheSpec
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    pages: _containers.RepeatedScalarFieldContainer[int]
    page_keys: _containers.RepeatedScalarFieldContainer[bytes]
    durability: Durability
    page_inputs: _containers.RepeatedScalarFieldContainer[bytes]
    first_page: int
    parent_key: bytes
    assembly: bytes
    def __init__(self, spec: _Optional[_Union[_types_pb2.CacheSpec, _Mapping]] = ..., token_ids: _Optional[_Iterable[int]] = ..., pages: _Optional[_Iterable[int]] = ..., page_keys: _Optional[_Iterable[bytes]] = ..., durability: _Optional[_Union[Durability, str]] = ..., page_inputs: _Optional[_Iterable[bytes]] = ..., first_page: _Optional[int] = ..., parent_key: _Optional[bytes] = ..., assembly: _Optional[bytes] = ...) -> None: ...

class PageResult(_message.Message):
    __slots__ = ("page", "outcome", "stored_bytes")
    PAGE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    page: int
    outcome: PageOutcome
    stored_bytes: int
    def __init__(self, page: _Optional[int] = ..., outcome: _Optional[_Union[PageOutcome, str]] = ..., stored_bytes: _Optional[int] = ...) -> None: ...

class StageSeconds(_message.Message):
    __slots__ = ("receive", "place", "encoder", "encode", "commit")
    RECEIVE_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    receive: float
    place: float
    encoder: float
    encode: float
    commit: float
    def __init__(self, receive: _Optional[float] = ..., place: _Optional[float] = ..., encoder: _Optional[float] = ..., encode: _Optional[float] = ..., commit: _Optional[float] = ...) -> None: ...

class PutResponse(_message.Message):
    __slots__ = ("pages", "seconds")
    PAGES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    pages: _containers.RepeatedCompositeFieldContainer[PageResult]
    seconds: StageSeconds
    def __init__(self, pages: _Optional[_Iterable[_Union[PageResult, _Mapping]]] = ..., seconds: _Optional[_Union[StageSeconds, _Mapping]] = ...) -> None: ...
