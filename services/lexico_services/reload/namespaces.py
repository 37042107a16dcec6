"""What a tenant has pages of: the logic of Namespaces, without gRPC."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from lexico_codec.namespaces import namespace_digest
from lexico_proto.v1 import reload_pb2 as pb
from lexico_proto.v1 import types_pb2 as types
from lexico_store import Cause, Described, Descriptions, PageStore

MAX_LISTED: Final = 64
"""Namespaces of an answer: at a few KB each it stays far below the bound of a message."""

_CAUSES: Final = {
    Cause.PRESENT: pb.ABSENCE_CAUSE_PRESENT,
    Cause.NO_TRACE: pb.ABSENCE_CAUSE_NO_TRACE,
    Cause.LEFT: pb.ABSENCE_CAUSE_LEFT,
    Cause.FORGOTTEN: pb.ABSENCE_CAUSE_FORGOTTEN,
}
_FIELDS: Final = tuple(
    field.name for field in types.CacheSpec.DESCRIPTOR.fields if field.name != "salt"
)


def stored_namespaces(
    store: PageStore, scope: bytes, request: pb.NamespacesRequest
) -> pb.NamespacesResponse:
    """The answer for one tenant. Blocks.

    Args:
        store: where pages are.
        scope: of the tenant.
        request: with a namespace and, if it has one, a page key of 32 bytes.

    Raises:
        StoreUnavailable, Busy, ConfigurationError: the store could not answer.
    """
    descriptions, asked = Descriptions(store), request.namespace
    response = pb.NamespacesResponse()
    response.total, found = descriptions.of(scope, asked)
    readable = [(each, message) for each in found if (message := _read(each)) is not None]
    readable.sort(key=lambda pair: -pair[0].began_us)
    readable.sort(key=lambda pair: (pair[0].namespace != asked, _unlike(pair[1], request.spec)))
    for each, message in readable[:MAX_LISTED]:
        if descriptions.live(scope, each.namespace):
            message.digest = namespace_digest(each.namespace)
            message.stored_s = each.began_us / 1e6
            response.namespaces.append(message)
    if request.page_key:
        absence = descriptions.why_absent(scope, asked, request.page_key)
        response.cause = _CAUSES[absence.cause]
        response.forgotten_s = absence.forgotten_us / 1e6
    return response


def _read(each: Described) -> pb.StoredNamespace | None:
    """What a note says; None for one that is damaged."""
    try:
        return pb.StoredNamespace.FromString(each.description)
    except DecodeError:
        return None


def _unlike(message: pb.StoredNamespace, spec: types.CacheSpec) -> int:
    """In how many fields it differs from a spec."""
    return sum(getattr(message.spec, name) != getattr(spec, name) for name in _FIELDS)
