from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegisterRequest(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: RegisterHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[RegisterHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class RegisterHeader(_message.Message):
    __slots__ = ("digest", "artefact_bytes")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    artefact_bytes: int
    def __init__(self, digest: _Optional[bytes] = ..., artefact_bytes: _Optional[int] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("added",)
    ADDED_FIELD_NUMBER: _ClassVar[int]
    added: bool
    def __init__(self, added: bool = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    def __init__(self, digest: _Optional[bytes] = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("artefact_bytes", "data")
    ARTEFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    artefact_bytes: int
    data: bytes
    def __init__(self, artefact_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("dictionaries",)
    DICTIONARIES_FIELD_NUMBER: _ClassVar[int]
    dictionaries: _containers.RepeatedCompositeFieldContainer[DictionaryInfo]
    def __init__(self, dictionaries: _Optional[_Iterable[_Union[DictionaryInfo, _Mapping]]] = ...) -> None: ...

class DictionaryInfo(_message.Message):
    __slots__ = ("digest", "artefact_bytes", "model", "layers", "kv_heads", "head_dim", "shared")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    artefact_bytes: int
    model: str
    layers: int
    kv_heads: int
    head_dim: int
    shared: bool
    def __init__(self, digest: _Optional[bytes] = ..., artefact_bytes: _Optional[int] = ..., model: _Optional[str] = ..., layers: _Optional[int] = ..., kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., shared: bool = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("digest", "models", "shared")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    models: _containers.RepeatedScalarFieldContainer[bytes]
    shared: bool
    def __init__(self, digest: _Optional[bytes] = ..., models: _Optional[_Iterable[bytes]] = ..., shared: bool = ...) -> None: ...

class PublishResponse(_message.Message):
    __slots__ = ("codecs",)
    CODECS_FIELD_NUMBER: _ClassVar[int]
    codecs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, codecs: _Optional[_Iterable[str]] = ...) -> None: ...

class FindRequest(_message.Message):
    __slots__ = ("models", "codec")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedScalarFieldContainer[bytes]
    codec: str
    def __init__(self, models: _Optional[_Iterable[bytes]] = ..., codec: _Optional[str] = ...) -> None: ...

class FindResponse(_message.Message):
    __slots__ = ("digest", "age_s", "shared", "page_ttl_s")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    PAGE_TTL_S_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    age_s: float
    shared: bool
    page_ttl_s: float
    def __init__(self, digest: _Optional[bytes] = ..., age_s: _Optional[float] = ..., shared: bool = ..., page_ttl_s: _Optional[float] = ...) -> None: ...
