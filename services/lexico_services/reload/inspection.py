"""What an admin or operator asks about stored pages: the logic of Inspect and Tenants, without
gRPC. All of it blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from lexico_proto.errors import ConfigurationError
from lexico_proto.limits import MAX_GROUPS
from lexico_proto.v1 import admin_pb2 as pb
from lexico_proto.v1 import reload_pb2
from lexico_services.policies import TenantPolicy
from lexico_store import Ledger, PageStore
from lexico_store import keys as keyspace
from lexico_store.lifetimes import page_life_ms
from lexico_store.namespace_notes import unpacked
from lexico_store.scopes import tenant_scope

MAX_TENANTS: Final = 1000
"""Tenants of an answer: each costs some round trips."""


def inspect_pages(
    store: PageStore,
    tenant: bytes,
    namespace: bytes,
    keys: Sequence[bytes],
    first: int,
    groups: int,
    ttl_s: float,
) -> pb.InspectResponse:
    """What is stored of consecutive pages. It renews none of them.

    Args:
        store: where pages are.
        tenant: its scope.
        namespace: of the keys, 32 bytes.
        keys: of the pages, 32 bytes each.
        first: index of the first of them in its sequence.
        groups: frames of a page; 0 for as many as a page may have.
        ttl_s: seconds that pages of the tenant live now.

    Raises:
        StoreUnavailable, Busy: the store could not answer.
    """
    scope = store.match(tenant, namespace, ()).scope
    lengths = store.frame_bytes(scope, keys, range(groups or MAX_GROUPS))
    known, lives = _lives(store, scope, keys)
    response = pb.InspectResponse(page_ttl_s=ttl_s)
    for at, (sizes, left_s) in enumerate(zip(zip(*lengths, strict=True), lives, strict=True)):
        frames = [size for size in sizes if size]
        state = response.pages.add(present=bool(frames), groups=len(frames), bytes=sum(frames))
        if not known or left_s is None or not frames:
            continue
        if math.isinf(left_s):
            state.pinned = True
            continue
        state.left_s = left_s
        state.unused_s = max(0.0, page_life_ms(round(1000 * ttl_s), first + at) / 1000 - left_s)
    _describe(store, tenant, namespace, response)
    return response


def tenant_uses(
    store: PageStore, policies: Iterable[tuple[str, TenantPolicy]], ttl_s: float
) -> pb.TenantsResponse:
    """What tenants have stored and may have.

    Args:
        store: where pages are.
        policies: of each, by name.
        ttl_s: seconds that pages live where a policy does not say.

    Raises:
        StoreUnavailable, Busy: the store could not answer.
    """
    response, ledger = pb.TenantsResponse(), Ledger(store)
    for number, (name, policy) in enumerate(policies):
        if number == MAX_TENANTS:
            response.more = True
            break
        scope = tenant_scope(name)
        pins = ledger.pins(scope)
        response.tenants.add(
            tenant=name,
            stored_bytes=ledger.estimate(scope),
            pins=len(pins),
            pinned_bytes=sum(pin.size for pin in pins),
            page_ttl_s=policy.page_ttl_s or ttl_s,
            max_stored_bytes=policy.max_stored_bytes or 0,
            max_pinned_bytes=policy.max_pinned_bytes,
            max_inflight_bytes=policy.max_inflight_bytes or 0,
            max_calls_per_s=policy.max_calls_per_s or 0.0,
        )
    return response


def _lives(
    store: PageStore, scope: bytes, keys: Sequence[bytes]
) -> tuple[bool, list[float | None]]:
    """Whether the store tells how long pages have to live, and how long."""
    try:
        return True, store.lives(scope, keys)
    except ConfigurationError:  # a right that nothing else needs
        return False, [None] * len(keys)


def _describe(
    store: PageStore, tenant: bytes, namespace: bytes, response: pb.InspectResponse
) -> None:
    note = store.read_record(keyspace.namespaces(tenant), [namespace]).get(namespace, b"")
    described = unpacked(namespace, note)
    if described is None:
        return
    try:
        response.spec.CopyFrom(reload_pb2.StoredNamespace.FromString(described.description).spec)
    except DecodeError:
        return  # a note that is damaged says nothing
