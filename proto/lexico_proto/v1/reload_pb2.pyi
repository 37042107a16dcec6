from lexico_proto.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MissReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MISS_REASON_UNSPECIFIED: _ClassVar[MissReason]
    MISS_REASON_ABSENT: _ClassVar[MissReason]
    MISS_REASON_DAMAGED: _ClassVar[MissReason]
    MISS_REASON_NEWER: _ClassVar[MissReason]

class AbsenceCause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ABSENCE_CAUSE_UNSPECIFIED: _ClassVar[AbsenceCause]
    ABSENCE_CAUSE_PRESENT: _ClassVar[AbsenceCause]
    ABSENCE_CAUSE_NO_TRACE: _ClassVar[AbsenceCause]
    ABSENCE_CAUSE_LEFT: _ClassVar[AbsenceCause]
    ABSENCE_CAUSE_FORGOTTEN: _ClassVar[AbsenceCause]
MISS_REASON_UNSPECIFIED: MissReason
MISS_REASON_ABSENT: MissReason
MISS_REASON_DAMAGED: MissReason
MISS_REASON_NEWER: MissReason
ABSENCE_CAUSE_UNSPECIFIED: AbsenceCause
ABSENCE_CAUSE_PRESENT: AbsenceCause
ABSENCE_CAUSE_NO_TRACE: AbsenceCause
ABSENCE_CAUSE_LEFT: AbsenceCause
ABSENCE_CAUSE_FORGOTTEN: AbsenceCause

class MatchRequest(_message.Message):
    __slots__ = ("page_keys", "namespace", "first_page", "renew", "page_tokens", "codec")
    PAGE_KEYS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FIRST_PAGE_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    page_keys: _containers.RepeatedScalarFieldContainer[bytes]
    namespace: bytes
    first_page: int
    renew: bool
    page_tokens: int
    codec: str
    def __init__(self, page_keys: _Optional[_Iterable[bytes]] = ..., namespace: _Optional[bytes] = ..., first_page: _Optional[int] = ..., renew: bool = ..., page_tokens: _Optional[int] = ..., codec: _Optional[str] = ...) -> None: ...

class MatchResponse(_message.Message):
    __slots__ = ("leading", "present")
    LEADING_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    leading: int
    present: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, leading: _Optional[int] = ..., present: _Optional[_Iterable[bool]] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("page_keys", "groups", "namespace", "first_page")
    PAGE_KEYS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FIRST_PAGE_FIELD_NUMBER: _ClassVar[int]
    page_keys: _containers.RepeatedScalarFieldContainer[bytes]
    groups: int
    namespace: bytes
    first_page: int
    def __init__(self, page_keys: _Optional[_Iterable[bytes]] = ..., groups: _Optional[int] = ..., namespace: _Optional[bytes] = ..., first_page: _Optional[int] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("frame", "miss")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    MISS_FIELD_NUMBER: _ClassVar[int]
    frame: FramePart
    miss: Miss
    def __init__(self, frame: _Optional[_Union[FramePart, _Mapping]] = ..., miss: _Optional[_Union[Miss, _Mapping]] = ...) -> None: ...

class FramePart(_message.Message):
    __slots__ = ("page", "group", "frame_bytes", "data")
    PAGE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    page: int
    group: int
    frame_bytes: int
    data: bytes
    def __init__(self, page: _Optional[int] = ..., group: _Optional[int] = ..., frame_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Miss(_message.Message):
    __slots__ = ("page", "reason")
    PAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    page: int
    reason: MissReason
    def __init__(self, page: _Optional[int] = ..., reason: _Optional[_Union[MissReason, str]] = ...) -> None: ...

class NamespacesRequest(_message.Message):
    __slots__ = ("namespace", "page_key", "spec")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PAGE_KEY_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    namespace: bytes
    page_key: bytes
    spec: _types_pb2.CacheSpec
    def __init__(self, namespace: _Optional[bytes] = ..., page_key: _Optional[bytes] = ..., spec: _Optional[_Union[_types_pb2.CacheSpec, _Mapping]] = ...) -> None: ...

class StoredNamespace(_message.Message):
    __slots__ = ("digest", "spec", "salted", "stored_s")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SALTED_FIELD_NUMBER: _ClassVar[int]
    STORED_S_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    spec: _types_pb2.CacheSpec
    salted: bool
    stored_s: float
    def __init__(self, digest: _Optional[bytes] = ..., spec: _Optional[_Union[_types_pb2.CacheSpec, _Mapping]] = ..., salted: bool = ..., stored_s: _Optional[float] = ...) -> None: ...

class NamespacesResponse(_message.Message):
    __slots__ = ("namespaces", "total", "cause", "forgotten_s")
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_S_FIELD_NUMBER: _ClassVar[int]
    namespaces: _containers.RepeatedCompositeFieldContainer[StoredNamespace]
    total: int
    cause: AbsenceCause
    forgotten_s: float
    def __init__(self, namespaces: _Optional[_Iterable[_Union[StoredNamespace, _Mapping]]] = ..., total: _Optional[int] = ..., cause: _Optional[_Union[AbsenceCause, str]] = ..., forgotten_s: _Optional[float] = ...) -> None: ...
