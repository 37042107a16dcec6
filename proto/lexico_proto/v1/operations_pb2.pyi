from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("release", "part", "running_s", "counting", "own", "ingress", "reload", "tenants")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    RUNNING_S_FIELD_NUMBER: _ClassVar[int]
    COUNTING_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    INGRESS_FIELD_NUMBER: _ClassVar[int]
    RELOAD_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    release: str
    part: str
    running_s: float
    counting: bool
    own: TenantStatus
    ingress: IngressStatus
    reload: ReloadStatus
    tenants: _containers.RepeatedCompositeFieldContainer[TenantStatus]
    def __init__(self, release: _Optional[str] = ..., part: _Optional[str] = ..., running_s: _Optional[float] = ..., counting: bool = ..., own: _Optional[_Union[TenantStatus, _Mapping]] = ..., ingress: _Optional[_Union[IngressStatus, _Mapping]] = ..., reload: _Optional[_Union[ReloadStatus, _Mapping]] = ..., tenants: _Optional[_Iterable[_Union[TenantStatus, _Mapping]]] = ...) -> None: ...

class TenantStatus(_message.Message):
    __slots__ = ("tenant", "received_bytes", "stored_bytes", "sent_bytes", "matches", "match_tokens", "hit_tokens")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    MATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    received_bytes: int
    stored_bytes: int
    sent_bytes: int
    matches: int
    match_tokens: int
    hit_tokens: int
    def __init__(self, tenant: _Optional[str] = ..., received_bytes: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., matches: _Optional[int] = ..., match_tokens: _Optional[int] = ..., hit_tokens: _Optional[int] = ...) -> None: ...

class IngressStatus(_message.Message):
    __slots__ = ("pages_stored", "pages_present", "pages_in_progress", "pages_failed", "pages_cancelled", "received_bytes", "stored_bytes", "encoder_retries", "inflight_bytes", "inflight_limit_bytes", "pages_encoding", "pages_waiting", "encoders")
    PAGES_STORED_FIELD_NUMBER: _ClassVar[int]
    PAGES_PRESENT_FIELD_NUMBER: _ClassVar[int]
    PAGES_IN_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PAGES_FAILED_FIELD_NUMBER: _ClassVar[int]
    PAGES_CANCELLED_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENCODER_RETRIES_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAGES_ENCODING_FIELD_NUMBER: _ClassVar[int]
    PAGES_WAITING_FIELD_NUMBER: _ClassVar[int]
    ENCODERS_FIELD_NUMBER: _ClassVar[int]
    pages_stored: int
    pages_present: int
    pages_in_progress: int
    pages_failed: int
    pages_cancelled: int
    received_bytes: int
    stored_bytes: int
    encoder_retries: int
    inflight_bytes: int
    inflight_limit_bytes: int
    pages_encoding: int
    pages_waiting: int
    encoders: int
    def __init__(self, pages_stored: _Optional[int] = ..., pages_present: _Optional[int] = ..., pages_in_progress: _Optional[int] = ..., pages_failed: _Optional[int] = ..., pages_cancelled: _Optional[int] = ..., received_bytes: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., encoder_retries: _Optional[int] = ..., inflight_bytes: _Optional[int] = ..., inflight_limit_bytes: _Optional[int] = ..., pages_encoding: _Optional[int] = ..., pages_waiting: _Optional[int] = ..., encoders: _Optional[int] = ...) -> None: ...

class ReloadStatus(_message.Message):
    __slots__ = ("matches_all", "matches_some", "matches_none", "match_tokens", "hit_tokens", "sent_pages", "sent_bytes", "misses_absent", "misses_damaged", "misses_newer", "streams", "streams_limit", "store_calls", "buffered_bytes", "buffered_limit_bytes", "store", "sets_found", "sets_missing")
    MATCHES_ALL_FIELD_NUMBER: _ClassVar[int]
    MATCHES_SOME_FIELD_NUMBER: _ClassVar[int]
    MATCHES_NONE_FIELD_NUMBER: _ClassVar[int]
    MATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SENT_PAGES_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MISSES_ABSENT_FIELD_NUMBER: _ClassVar[int]
    MISSES_DAMAGED_FIELD_NUMBER: _ClassVar[int]
    MISSES_NEWER_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_LIMIT_FIELD_NUMBER: _ClassVar[int]
    STORE_CALLS_FIELD_NUMBER: _ClassVar[int]
    BUFFERED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUFFERED_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    SETS_FOUND_FIELD_NUMBER: _ClassVar[int]
    SETS_MISSING_FIELD_NUMBER: _ClassVar[int]
    matches_all: int
    matches_some: int
    matches_none: int
    match_tokens: int
    hit_tokens: int
    sent_pages: int
    sent_bytes: int
    misses_absent: int
    misses_damaged: int
    misses_newer: int
    streams: int
    streams_limit: int
    store_calls: int
    buffered_bytes: int
    buffered_limit_bytes: int
    store: StoreStatus
    sets_found: int
    sets_missing: int
    def __init__(self, matches_all: _Optional[int] = ..., matches_some: _Optional[int] = ..., matches_none: _Optional[int] = ..., match_tokens: _Optional[int] = ..., hit_tokens: _Optional[int] = ..., sent_pages: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., misses_absent: _Optional[int] = ..., misses_damaged: _Optional[int] = ..., misses_newer: _Optional[int] = ..., streams: _Optional[int] = ..., streams_limit: _Optional[int] = ..., store_calls: _Optional[int] = ..., buffered_bytes: _Optional[int] = ..., buffered_limit_bytes: _Optional[int] = ..., store: _Optional[_Union[StoreStatus, _Mapping]] = ..., sets_found: _Optional[int] = ..., sets_missing: _Optional[int] = ...) -> None: ...

class StoreStatus(_message.Message):
    __slots__ = ("up", "numbers")
    UP_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    up: bool
    numbers: StoreNumbers
    def __init__(self, up: bool = ..., numbers: _Optional[_Union[StoreNumbers, _Mapping]] = ...) -> None: ...

class StoreNumbers(_message.Message):
    __slots__ = ("used_bytes", "max_bytes", "evictions", "expiries", "connections")
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    EXPIRIES_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    used_bytes: int
    max_bytes: int
    evictions: int
    expiries: int
    connections: int
    def __init__(self, used_bytes: _Optional[int] = ..., max_bytes: _Optional[int] = ..., evictions: _Optional[int] = ..., expiries: _Optional[int] = ..., connections: _Optional[int] = ...) -> None: ...
