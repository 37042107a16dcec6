from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_FLOAT16: _ClassVar[DType]
    DTYPE_BFLOAT16: _ClassVar[DType]
    DTYPE_FLOAT8_E4M3FN: _ClassVar[DType]
    DTYPE_FLOAT8_E5M2: _ClassVar[DType]

class RopePairing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROPE_PAIRING_UNSPECIFIED: _ClassVar[RopePairing]
    ROPE_PAIRING_HALF: _ClassVar[RopePairing]
    ROPE_PAIRING_INTERLEAVED: _ClassVar[RopePairing]
DTYPE_UNSPECIFIED: DType
DTYPE_FLOAT32: DType
DTYPE_FLOAT16: DType
DTYPE_BFLOAT16: DType
DTYPE_FLOAT8_E4M3FN: DType
DTYPE_FLOAT8_E5M2: DType
ROPE_PAIRING_UNSPECIFIED: RopePairing
ROPE_PAIRING_HALF: RopePairing
ROPE_PAIRING_INTERLEAVED: RopePairing

class Rope(_message.Message):
    __slots__ = ("inv_freq", "pairing", "scale")
    INV_FREQ_FIELD_NUMBER: _ClassVar[int]
    PAIRING_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    inv_freq: _containers.RepeatedScalarFieldContainer[float]
    pairing: RopePairing
    scale: float
    def __init__(self, inv_freq: _Optional[_Iterable[float]] = ..., pairing: _Optional[_Union[RopePairing, str]] = ..., scale: _Optional[float] = ...) -> None: ...

class Geometry(_message.Message):
    __slots__ = ("layers", "kv_heads", "head_dim", "dtype", "rope")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ROPE_FIELD_NUMBER: _ClassVar[int]
    layers: int
    kv_heads: int
    head_dim: int
    dtype: DType
    rope: Rope
    def __init__(self, layers: _Optional[int] = ..., kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., dtype: _Optional[_Union[DType, str]] = ..., rope: _Optional[_Union[Rope, _Mapping]] = ...) -> None: ...

class Shard(_message.Message):
    __slots__ = ("first_layer", "total_layers", "first_head", "total_heads")
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    TOTAL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    FIRST_HEAD_FIELD_NUMBER: _ClassVar[int]
    TOTAL_HEADS_FIELD_NUMBER: _ClassVar[int]
    first_layer: int
    total_layers: int
    first_head: int
    total_heads: int
    def __init__(self, first_layer: _Optional[int] = ..., total_layers: _Optional[int] = ..., first_head: _Optional[int] = ..., total_heads: _Optional[int] = ...) -> None: ...

class CacheSpec(_message.Message):
    __slots__ = ("weights", "lora", "geometry", "shard", "codec", "codec_config", "dictionary", "page_tokens", "group_layers", "salt")
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    GEOMETRY_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    CODEC_CONFIG_FIELD_NUMBER: _ClassVar[int]
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GROUP_LAYERS_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    weights: bytes
    lora: str
    geometry: Geometry
    shard: Shard
    codec: str
    codec_config: str
    dictionary: bytes
    page_tokens: int
    group_layers: int
    salt: bytes
    def __init__(self, weights: _Optional[bytes] = ..., lora: _Optional[str] = ..., geometry: _Optional[_Union[Geometry, _Mapping]] = ..., shard: _Optional[_Union[Shard, _Mapping]] = ..., codec: _Optional[str] = ..., codec_config: _Optional[str] = ..., dictionary: _Optional[bytes] = ..., page_tokens: _Optional[int] = ..., group_layers: _Optional[int] = ..., salt: _Optional[bytes] = ...) -> None: ...
