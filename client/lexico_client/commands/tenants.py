"""`lexico tenants`: what each tenant has stored and may have, for the service's operator."""

from __future__ import annotations

import argparse

from lexico_client.commands.connection import Connection
from lexico_client.commands.output import Answer, Screen, Table, size, span
from lexico_proto.v1 import admin_pb2 as pb


def tenants(options: argparse.Namespace, screen: Screen) -> Answer:
    """Every tenant that the reload server knows by name.

    Raises:
        LexicoError: the service could not answer, or the caller is no operator.
    """
    told: pb.TenantsResponse = Connection.of(options).admin("Tenants", pb.TenantsRequest())
    document = {
        "tenants": [
            {
                "tenant": each.tenant,
                "stored_bytes": each.stored_bytes,
                "max_stored_bytes": each.max_stored_bytes or None,
                "pins": each.pins,
                "pinned_bytes": each.pinned_bytes,
                "max_pinned_bytes": each.max_pinned_bytes,
                "max_inflight_bytes": each.max_inflight_bytes or None,
                "max_calls_per_s": each.max_calls_per_s or None,
                "page_ttl_s": each.page_ttl_s,
            }
            for each in told.tenants
        ],
        "more": told.more,
    }
    rows = tuple(
        (
            each.tenant,
            size(each.stored_bytes),
            size(each.max_stored_bytes) if each.max_stored_bytes else "any",
            size(each.pinned_bytes),
            size(each.max_pinned_bytes),
            size(each.max_inflight_bytes) if each.max_inflight_bytes else "any",
            f"{each.max_calls_per_s:g}" if each.max_calls_per_s else "any",
            span(each.page_ttl_s),
        )
        for each in told.tenants
    )
    columns = (
        *("tenant", ">stored, about", ">allowed", ">pinned", ">allowed"),
        *(">in flight", ">calls/s", ">page lives"),
    )
    parts: list[Table | str] = [Table("", columns, rows)]
    if told.more:
        parts.append("There are more tenants than are listed.")
    return Answer(document, tuple(parts))
