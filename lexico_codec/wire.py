"""Specs as protobuf messages and back."""

from __future__ import annotations

from typing import Final

from lexico_codec.geometry import Geometry, Pairing, Rope
from lexico_codec.identity import Identity
from lexico_codec.spec import CacheSpec, Shard, make_spec
from lexico_proto.errors import InvalidInput
from lexico_proto.v1 import reload_pb2 as reload
from lexico_proto.v1 import types_pb2 as pb

_DTYPES: Final[dict[str, pb.DType]] = {
    "float32": pb.DTYPE_FLOAT32,
    "float16": pb.DTYPE_FLOAT16,
    "bfloat16": pb.DTYPE_BFLOAT16,
    "float8_e4m3fn": pb.DTYPE_FLOAT8_E4M3FN,
    "float8_e5m2": pb.DTYPE_FLOAT8_E5M2,
}
_PAIRINGS: Final[dict[Pairing, pb.RopePairing]] = {
    "half": pb.ROPE_PAIRING_HALF,
    "interleaved": pb.ROPE_PAIRING_INTERLEAVED,
}


def spec_to_wire(spec: CacheSpec) -> pb.CacheSpec:
    """The message that stands for a spec."""
    geometry, rope = spec.geometry, spec.geometry.rope
    message = pb.Geometry(
        layers=geometry.layers,
        kv_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        dtype=_DTYPES[geometry.dtype],
    )
    if rope is not None:
        message.rope.CopyFrom(
            pb.Rope(inv_freq=rope.inv_freq, pairing=_PAIRINGS[rope.pairing], scale=rope.scale)
        )
    return pb.CacheSpec(
        weights=spec.weights,
        lora=spec.lora,
        geometry=message,
        shard=pb.Shard(**vars(spec.shard)),
        codec=spec.codec.name,
        codec_config=spec.codec.config_json(),
        dictionary=spec.dictionary,
        page_tokens=spec.page_tokens,
        group_layers=spec.group_layers,
        salt=spec.identity.salt,
    )


def spec_from_wire(message: pb.CacheSpec) -> CacheSpec:
    """The spec that a message stands for.

    Raises:
        InvalidInput and its subclasses, UnknownCodec: naming the field that cannot be used.
    """
    geometry = _geometry_from_wire(message.geometry)
    if message.group_layers == 0:
        raise InvalidInput("spec: group_layers must be given on the wire")
    shard = message.shard
    return make_spec(
        weights=message.weights,
        geometry=geometry,
        codec=message.codec,
        codec_config=message.codec_config,
        dictionary=message.dictionary,
        page_tokens=message.page_tokens,
        group_layers=message.group_layers,
        lora=message.lora,
        shard=Shard(shard.first_layer, shard.total_layers, shard.first_head, shard.total_heads),
        salt=message.salt,
    )


def described(spec: CacheSpec) -> reload.StoredNamespace:
    """What the namespace of a spec is made of, but for the salt, which may be a secret."""
    message = spec_to_wire(spec)
    salted = bool(message.salt)
    message.ClearField("salt")
    return reload.StoredNamespace(spec=message, salted=salted)


def identity_from_wire(message: pb.CacheSpec) -> Identity:
    """The identity that a message stands for, though this node may not know its codec.

    Raises:
        InvalidInput and its subclasses: naming the field that cannot be used.
    """
    shard = message.shard
    return Identity(
        weights=message.weights,
        lora=message.lora,
        geometry=_geometry_from_wire(message.geometry),
        shard=(shard.first_layer, shard.total_layers, shard.first_head, shard.total_heads),
        codec=message.codec,
        codec_config=message.codec_config,
        dictionary=message.dictionary,
        page_tokens=message.page_tokens,
        group_layers=message.group_layers,
        salt=message.salt,
    )


def _geometry_from_wire(message: pb.Geometry) -> Geometry:
    dtype = next((name for name, code in _DTYPES.items() if code == message.dtype), None)
    if dtype is None:
        raise InvalidInput(f"spec: dtype code {message.dtype} is unknown")
    rope = None
    if message.HasField("rope"):
        pairing = next((n for n, code in _PAIRINGS.items() if code == message.rope.pairing), None)
        if pairing is None:
            raise InvalidInput(f"spec: rope pairing code {message.rope.pairing} is unknown")
        rope = Rope(tuple(message.rope.inv_freq), pairing, message.rope.scale)
    return Geometry(message.layers, message.kv_heads, message.head_dim, dtype, rope)
