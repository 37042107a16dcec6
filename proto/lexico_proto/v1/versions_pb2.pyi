from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ("caller",)
    CALLER_FIELD_NUMBER: _ClassVar[int]
    caller: Formats
    def __init__(self, caller: _Optional[_Union[Formats, _Mapping]] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("server",)
    SERVER_FIELD_NUMBER: _ClassVar[int]
    server: Formats
    def __init__(self, server: _Optional[_Union[Formats, _Mapping]] = ...) -> None: ...

class Formats(_message.Message):
    __slots__ = ("release", "frames", "codecs", "sets", "dtypes")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    SETS_FIELD_NUMBER: _ClassVar[int]
    DTYPES_FIELD_NUMBER: _ClassVar[int]
    release: str
    frames: _containers.RepeatedScalarFieldContainer[int]
    codecs: _containers.RepeatedScalarFieldContainer[str]
    sets: _containers.RepeatedScalarFieldContainer[int]
    dtypes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, release: _Optional[str] = ..., frames: _Optional[_Iterable[int]] = ..., codecs: _Optional[_Iterable[str]] = ..., sets: _Optional[_Iterable[int]] = ..., dtypes: _Optional[_Iterable[str]] = ...) -> None: ...
