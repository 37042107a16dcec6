"""What a tenant's namespaces are made of, and why a page is not there: for people who ask."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from lexico_store import keys as keyspace
from lexico_store.checks import check_key, check_scope
from lexico_store.ledger import SAMPLE
from lexico_store.lifetimes import ALL_NAMESPACES, newest
from lexico_store.namespace_notes import Described, unpacked
from lexico_store.store import PageStore

DRAWN: Final = 1024
"""Namespaces that are looked at, where a tenant has more: drawn by chance."""


class Cause(Enum):
    """Why a page is not there, as far as the store knows."""

    PRESENT = "present"
    """It is there."""
    NO_TRACE = "no-trace"
    """Nothing says that it was ever stored."""
    LEFT = "left"
    """It was stored, and expired or was evicted since."""
    FORGOTTEN = "forgotten"
    """It was forgotten, or its namespace was; nothing says that it was stored since."""


@dataclass(frozen=True)
class Absence:
    """Of one page."""

    cause: Cause
    forgotten_us: int = 0
    """When it was forgotten, in microseconds since 1970; 0 where the cause is another one."""


class Descriptions:
    """Reads what the ledger's notes say of a tenant, and changes none: who asks twice is told the
    same. Calls block, and raise what the store's may."""

    def __init__(self, store: PageStore) -> None:
        self._store = store

    def of(self, tenant: bytes, namespace: bytes) -> tuple[int, list[Described]]:
        """Namespaces that pages of were noted, forgotten ones left out; some of them may have none
        by now, see `live`.

        Args:
            tenant: its scope.
            namespace: among them, if it is described.

        Returns:
            How many namespaces the tenant has, and up to `DRAWN` + 1 that are described.
        """
        check_scope(tenant)
        record = keyspace.namespaces(tenant)
        total, drawn = self._store.sample_record(record, DRAWN)
        if namespace not in drawn:
            drawn |= self._store.read_record(record, [namespace])
        forgotten = self._store.read_record(keyspace.generations(tenant))
        everything = forgotten.get(ALL_NAMESPACES)
        found = []
        for name, value in drawn.items():
            described = unpacked(name, value)
            generation = newest([everything, forgotten.get(name)])
            if described is not None and described.began_us > generation:
                found.append(described)
        return total, found

    def why_absent(self, tenant: bytes, namespace: bytes, key: bytes) -> Absence:
        """Why a page of a namespace is not there."""
        check_key(key)
        found = self._store.match(tenant, namespace, [key])
        if found.present[0]:
            return Absence(Cause.PRESENT)
        digest = keyspace.page_digest(keyspace.page(found.scope, key))
        if self._store.read_record(keyspace.index(tenant, namespace), [digest]):
            return Absence(Cause.LEFT)
        forgotten_us = max(self._store.forgotten_us(found.scope, key), found.generation)
        if forgotten_us:
            return Absence(Cause.FORGOTTEN, forgotten_us)
        return Absence(Cause.NO_TRACE)

    def live(self, tenant: bytes, namespace: bytes) -> bool:
        """Whether one of a few pages that were noted of a namespace is there."""
        drawn = self._store.sample_record(keyspace.index(tenant, namespace), SAMPLE)[1]
        return any(self._store.remaining(list(drawn)))
