from lexico_proto.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Prompt(_message.Message):
    __slots__ = ("namespace", "page_keys")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PAGE_KEYS_FIELD_NUMBER: _ClassVar[int]
    namespace: bytes
    page_keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, namespace: _Optional[bytes] = ..., page_keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class UsageRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NamespaceUsage(_message.Message):
    __slots__ = ("namespace", "about", "pages", "bytes", "pages_gone")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ABOUT_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    PAGES_GONE_FIELD_NUMBER: _ClassVar[int]
    namespace: bytes
    about: str
    pages: int
    bytes: int
    pages_gone: int
    def __init__(self, namespace: _Optional[bytes] = ..., about: _Optional[str] = ..., pages: _Optional[int] = ..., bytes: _Optional[int] = ..., pages_gone: _Optional[int] = ...) -> None: ...

class PinUsage(_message.Message):
    __slots__ = ("pin", "namespace", "label", "pages", "bytes")
    PIN_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    pin: bytes
    namespace: bytes
    label: str
    pages: int
    bytes: int
    def __init__(self, pin: _Optional[bytes] = ..., namespace: _Optional[bytes] = ..., label: _Optional[str] = ..., pages: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class UsageResponse(_message.Message):
    __slots__ = ("namespaces", "pins", "page_ttl_s", "max_stored_bytes", "max_pinned_bytes", "max_inflight_bytes", "max_calls_per_s", "eviction")
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    PAGE_TTL_S_FIELD_NUMBER: _ClassVar[int]
    MAX_STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_INFLIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CALLS_PER_S_FIELD_NUMBER: _ClassVar[int]
    EVICTION_FIELD_NUMBER: _ClassVar[int]
    namespaces: _containers.RepeatedCompositeFieldContainer[NamespaceUsage]
    pins: _containers.RepeatedCompositeFieldContainer[PinUsage]
    page_ttl_s: float
    max_stored_bytes: int
    max_pinned_bytes: int
    max_inflight_bytes: int
    max_calls_per_s: float
    eviction: str
    def __init__(self, namespaces: _Optional[_Iterable[_Union[NamespaceUsage, _Mapping]]] = ..., pins: _Optional[_Iterable[_Union[PinUsage, _Mapping]]] = ..., page_ttl_s: _Optional[float] = ..., max_stored_bytes: _Optional[int] = ..., max_pinned_bytes: _Optional[int] = ..., max_inflight_bytes: _Optional[int] = ..., max_calls_per_s: _Optional[float] = ..., eviction: _Optional[str] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("prompt", "label")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    prompt: Prompt
    label: str
    def __init__(self, prompt: _Optional[_Union[Prompt, _Mapping]] = ..., label: _Optional[str] = ...) -> None: ...

class PinResponse(_message.Message):
    __slots__ = ("pin", "pages", "bytes")
    PIN_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    pin: bytes
    pages: int
    bytes: int
    def __init__(self, pin: _Optional[bytes] = ..., pages: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class UnpinRequest(_message.Message):
    __slots__ = ("pin",)
    PIN_FIELD_NUMBER: _ClassVar[int]
    pin: bytes
    def __init__(self, pin: _Optional[bytes] = ...) -> None: ...

class UnpinResponse(_message.Message):
    __slots__ = ("pages",)
    PAGES_FIELD_NUMBER: _ClassVar[int]
    pages: int
    def __init__(self, pages: _Optional[int] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("prompt", "namespace", "everything")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    EVERYTHING_FIELD_NUMBER: _ClassVar[int]
    prompt: Prompt
    namespace: bytes
    everything: bool
    def __init__(self, prompt: _Optional[_Union[Prompt, _Mapping]] = ..., namespace: _Optional[bytes] = ..., everything: bool = ...) -> None: ...

class ForgetResponse(_message.Message):
    __slots__ = ("pages",)
    PAGES_FIELD_NUMBER: _ClassVar[int]
    pages: int
    def __init__(self, pages: _Optional[int] = ...) -> None: ...

class InspectRequest(_message.Message):
    __slots__ = ("prompt", "first_page", "groups")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    FIRST_PAGE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    prompt: Prompt
    first_page: int
    groups: int
    def __init__(self, prompt: _Optional[_Union[Prompt, _Mapping]] = ..., first_page: _Optional[int] = ..., groups: _Optional[int] = ...) -> None: ...

class PageState(_message.Message):
    __slots__ = ("present", "groups", "bytes", "pinned", "left_s", "unused_s")
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    LEFT_S_FIELD_NUMBER: _ClassVar[int]
    UNUSED_S_FIELD_NUMBER: _ClassVar[int]
    present: bool
    groups: int
    bytes: int
    pinned: bool
    left_s: float
    unused_s: float
    def __init__(self, present: bool = ..., groups: _Optional[int] = ..., bytes: _Optional[int] = ..., pinned: bool = ..., left_s: _Optional[float] = ..., unused_s: _Optional[float] = ...) -> None: ...

class InspectResponse(_message.Message):
    __slots__ = ("pages", "spec", "page_ttl_s")
    PAGES_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PAGE_TTL_S_FIELD_NUMBER: _ClassVar[int]
    pages: _containers.RepeatedCompositeFieldContainer[PageState]
    spec: _types_pb2.CacheSpec
    page_ttl_s: float
    def __init__(self, pages: _Optional[_Iterable[_Union[PageState, _Mapping]]] = ..., spec: _Optional[_Union[_types_pb2.CacheSpec, _Mapping]] = ..., page_ttl_s: _Optional[float] = ...) -> None: ...

class TenantsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TenantUse(_message.Message):
    __slots__ = ("tenant", "stored_bytes", "pins", "pinned_bytes", "page_ttl_s", "max_stored_bytes", "max_pinned_bytes", "max_inflight_bytes", "max_calls_per_s")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAGE_TTL_S_FIELD_NUMBER: _ClassVar[int]
    MAX_STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_INFLIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CALLS_PER_S_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    stored_bytes: int
    pins: int
    pinned_bytes: int
    page_ttl_s: float
    max_stored_bytes: int
    max_pinned_bytes: int
    max_inflight_bytes: int
    max_calls_per_s: float
    def __init__(self, tenant: _Optional[str] = ..., stored_bytes: _Optional[int] = ..., pins: _Optional[int] = ..., pinned_bytes: _Optional[int] = ..., page_ttl_s: _Optional[float] = ..., max_stored_bytes: _Optional[int] = ..., max_pinned_bytes: _Optional[int] = ..., max_inflight_bytes: _Optional[int] = ..., max_calls_per_s: _Optional[float] = ...) -> None: ...

class TenantsResponse(_message.Message):
    __slots__ = ("tenants", "more")
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantUse]
    more: bool
    def __init__(self, tenants: _Optional[_Iterable[_Union[TenantUse, _Mapping]]] = ..., more: bool = ...) -> None: ...
