"""Specs as text, for the command line and cache files."""

from __future__ import annotations

from google.protobuf.json_format import MessageToJson, Parse, ParseError

from lexico_codec.spec import CacheSpec
from lexico_codec.wire import spec_from_wire, spec_to_wire
from lexico_proto.errors import InvalidInput
from lexico_proto.v1 import types_pb2 as pb


def spec_to_json(spec: CacheSpec) -> str:
    """A spec as text: the message in protobuf's JSON."""
    return MessageToJson(spec_to_wire(spec))


def spec_from_json(text: str) -> CacheSpec:
    """The spec that a text stands for.

    Raises:
        InvalidInput and its subclasses, UnknownCodec: no such text, or naming the field that cannot
            be used.
    """
    try:
        message = Parse(text, pb.CacheSpec(), max_recursion_depth=8)
    except (ParseError, RecursionError, ValueError) as error:
        raise InvalidInput(f"spec: no JSON of a spec: {error}") from error
    return spec_from_wire(message)
