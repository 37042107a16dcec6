"""Names of everything the store keeps in Redis, built here and nowhere else.

    lx1:p:{<page>}               hash    one page: fields g0..gn and m; expires
    lx1:l:{<page>}               string  lease token of that page; expires
    lx1:d:{<scope>}:<digest>     hash    one dictionary set: c0..cn, n and size; never expires
    lx1:s:{<scope>}              set     digests of the scope's dictionary sets; never expires

`<page>` is BLAKE2b-160 of the page key, keyed with the tenant's scope; `<scope>` is BLAKE2b-160 of
the scope. So no tenant appears in clear, and equal page keys of two tenants are two names. The
braces are Redis Cluster hash tags: a page and its lease share a slot, and so do a dictionary set
and the listing that a MULTI updates with it. `lx1` is the version of this layout: change the
layout, change the prefix.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

PREFIX: Final = "lx1"
FORMER_META_FIELD: Final = "m"
"""Field of a page's hash that earlier releases wrote, empty: it means nothing."""
CHUNK_COUNT_FIELD: Final = "n"
SIZE_FIELD: Final = "size"

_DIGEST_BYTES: Final = 20


def page(scope: bytes, key: bytes) -> str:
    """Name of the hash that holds page `key` of the tenant `scope` (1..64 bytes)."""
    return f"{PREFIX}:p:{{{_page_digest(scope, key)}}}"


def lease(scope: bytes, key: bytes) -> str:
    """Name of the single-flight lease of page `key`, in the page's own slot."""
    return f"{PREFIX}:l:{{{_page_digest(scope, key)}}}"


def dictionary(scope: bytes, digest: bytes) -> str:
    """Name of the hash that holds the dictionary set `digest`."""
    return f"{PREFIX}:d:{{{_scope_digest(scope)}}}:{digest.hex()}"


def dictionary_listing(scope: bytes) -> str:
    """Name of the set of digests of the tenant's dictionary sets."""
    return f"{PREFIX}:s:{{{_scope_digest(scope)}}}"


def group_field(group: int) -> str:
    """Field of layer group `group` in a page's hash."""
    return f"g{group}"


def chunk_field(index: int) -> str:
    """Field of chunk `index` in a dictionary set's hash."""
    return f"c{index}"


def _page_digest(scope: bytes, key: bytes) -> str:
    return blake2b(key, key=scope, digest_size=_DIGEST_BYTES, person=b"lx1-page").hexdigest()


def _scope_digest(scope: bytes) -> str:
    return blake2b(scope, digest_size=_DIGEST_BYTES, person=b"lx1-scope").hexdigest()
