"""Which set nodes of a model are to take: a tenant's records, and the operator's for all tenants.

A record is small, names a set by its digest, and is read whenever a node that lacks one asks. What
a model is, is the caller's business: here it is a name of 32 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lexico_proto.errors import Busy
from lexico_proto.limits import DIGEST_BYTES
from lexico_store import keys as keyspace
from lexico_store.checks import check_digest, check_key, check_scope
from lexico_store.lifetimes import now_us
from lexico_store.store import PageStore

MAX_PUBLISHED: Final = 1024
"""Models and codecs of a tenant that a set is published for: their record never expires."""


@dataclass(frozen=True)
class Published:
    """A set that is published for a model and a codec."""

    digest: bytes
    """Of the set, 32 bytes."""
    first_us: int
    """When a set was first published for them, in microseconds since 1970: one that took another's
    place has that one's time."""


class PublishedSets:
    """Reads and writes the records. Calls block, and raise what the store's may."""

    def __init__(self, store: PageStore) -> None:
        self._store = store

    def publish(
        self, scope: bytes, models: Sequence[bytes], codecs: Sequence[str], digest: bytes
    ) -> None:
        """Names the set for each of the models with each of the codecs.

        Args:
            scope: whose nodes it is for.
            models: 32 bytes each.
            codecs: by name.
            digest: of the set, 32 bytes.

        Raises:
            Busy: the scope would have over `MAX_PUBLISHED` records.
        """
        check_digest(digest)
        name = _record(scope)
        fields = [_field(model, codec) for model in models for codec in codecs]
        there = self._store.read_record(name)
        if len(there.keys() | set(fields)) > MAX_PUBLISHED:
            raise Busy(
                f"sets are published for {len(there)} models and codecs, and {MAX_PUBLISHED} is "
                "the most: take some back"
            )
        now = now_us()
        written = {}
        for field in fields:
            former = _unpacked(there.get(field))
            written[field] = _packed(digest, now if former is None else former.first_us)
        self._store.write_record(name, written)

    def take_back(self, scope: bytes, models: Sequence[bytes]) -> list[str]:
        """Removes what is published for these models; for which codecs there was a set."""
        name, wanted = _record(scope), {_checked(model) for model in models}
        gone = [field for field in self._store.read_record(name) if field[:DIGEST_BYTES] in wanted]
        if gone:
            self._store.remove_fields(name, gone)
        return sorted({field[DIGEST_BYTES:].decode(errors="replace") for field in gone})

    def find(self, scope: bytes, models: Sequence[bytes], codec: str) -> Published | None:
        """What is published for the first of the models that a set is published for."""
        fields = [_field(model, codec) for model in models]
        there = self._store.read_record(_record(scope), fields)
        found = (_unpacked(there.get(field)) for field in fields)
        return next((each for each in found if each is not None), None)


def _record(scope: bytes) -> str:
    check_scope(scope)
    return keyspace.published(scope)


def _field(model: bytes, codec: str) -> bytes:
    return _checked(model) + codec.encode()


def _checked(model: bytes) -> bytes:
    check_key(model)
    return model


def _packed(digest: bytes, first_us: int) -> bytes:
    return json.dumps({"digest": digest.hex(), "first_us": first_us}).encode()


def _unpacked(value: bytes | None) -> Published | None:
    """What a field says; None where there is none, or none that can be read."""
    if value is None:
        return None
    try:
        said = json.loads(value)
        digest, first_us = bytes.fromhex(said["digest"]), int(said["first_us"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return Published(digest, first_us) if len(digest) == DIGEST_BYTES else None
