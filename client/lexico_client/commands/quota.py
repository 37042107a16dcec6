"""`lexico quota`: what a tenant has stored and pinned, and what it may have."""

from __future__ import annotations

import argparse
from typing import Any

from lexico_client.commands.connection import Connection
from lexico_client.commands.output import Answer, Screen, Table, part_of, size, span
from lexico_proto.v1 import admin_pb2 as pb


def quota(options: argparse.Namespace, screen: Screen) -> Answer:
    """Of the tenant whose token is given.

    Raises:
        LexicoError: the service could not answer.
    """
    usage: pb.UsageResponse = Connection.of(options).admin("Usage", pb.UsageRequest())
    return Answer(_document(usage), _parts(usage))


def _document(usage: pb.UsageResponse) -> dict[str, Any]:
    return {
        "stored_bytes": sum(use.bytes for use in usage.namespaces),
        "max_stored_bytes": usage.max_stored_bytes or None,
        "pinned_bytes": sum(pin.bytes for pin in usage.pins),
        "max_pinned_bytes": usage.max_pinned_bytes,
        "max_inflight_bytes": usage.max_inflight_bytes or None,
        "max_calls_per_s": usage.max_calls_per_s or None,
        "page_ttl_s": usage.page_ttl_s,
        "eviction": usage.eviction,
        "namespaces": [
            {
                "namespace": use.namespace.hex(),
                "about": use.about,
                "pages": use.pages,
                "bytes": use.bytes,
                "pages_gone": use.pages_gone,
            }
            for use in usage.namespaces
        ],
        "pins": [
            {
                "pin": pin.pin.hex(),
                "namespace": pin.namespace.hex(),
                "label": pin.label,
                "pages": pin.pages,
                "bytes": pin.bytes,
            }
            for pin in usage.pins
        ],
    }


def _parts(usage: pb.UsageResponse) -> tuple[Table | str, ...]:
    stored = sum(use.bytes for use in usage.namespaces)
    pinned = sum(pin.bytes for pin in usage.pins)
    most, most_pinned = usage.max_stored_bytes, usage.max_pinned_bytes
    inflight, calls = usage.max_inflight_bytes, usage.max_calls_per_s
    bounds = (
        ("stored", size(stored), size(most) if most else "any", part_of(stored, most)),
        ("pinned", size(pinned), size(most_pinned), part_of(pinned, most_pinned)),
        ("in flight at each ingress", "-", size(inflight) if inflight else "any", "-"),
        ("calls a second to each server", "-", f"{calls:g}" if calls else "any", "-"),
        ("life of a page", "-", span(usage.page_ttl_s), "-"),
    )
    parts: list[Table | str] = [Table("", ("", ">used", ">allowed", ">part"), bounds)]
    if usage.namespaces:
        rows = tuple(
            (use.namespace.hex(), str(use.pages), size(use.bytes), str(use.pages_gone), use.about)
            for use in usage.namespaces
        )
        columns = ("namespace", ">pages", ">bytes", ">gone", "of")
        parts.append(
            Table("Namespaces, and pages gone since they were last counted", columns, rows)
        )
    if usage.pins:
        pins = tuple(
            (pin.pin.hex(), str(pin.pages), size(pin.bytes), pin.label) for pin in usage.pins
        )
        parts.append(Table("Pins", ("pin", ">pages", ">bytes", "label"), pins))
    return (*parts, usage.eviction)
