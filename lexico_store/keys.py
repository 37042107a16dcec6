"""Names of everything the store keeps in Redis, built here and nowhere else.

    lx1:p:{<page>}               hash    one page: frames g0..gn, m: how many; expires or is pinned
    lx1:h:{<page>}               string  who encodes that page, and until when; expires much later
    lx1:x:{<page>}               string  when that page was forgotten; expires much later
    lx1:d:{<scope>}:<digest>     hash    one dictionary set: c0..cn, n and size; never expires
    lx1:s:{<scope>}              set     digests of the scope's dictionary sets; never expires
    lx1:f:{<scope>}              hash    namespace, or * for all → when it was forgotten last
    lx1:n:{<scope>}              hash    namespace → what it is of; never expires
    lx1:i:{<scope>}:<namespace>  hash    pages that were stored: digest → bytes; never expires
    lx1:k:{<scope>}              hash    pinned prompts; never expires
    lx1:m:{<scope>}              hash    model and codec → the set for them; never expires

`<page>` is BLAKE2b-160 of the page key, keyed with the tenant's scope and generation (`scopes`);
`<scope>` is BLAKE2b-160 of the scope. So no tenant appears in clear, and equal page keys of two
tenants are two names. The braces are Redis Cluster hash tags: a page, its lease and its mark share
a slot, and so do a dictionary set and the listing that a MULTI updates with it. `lx1` is the
version of this layout: change the layout, change the prefix.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

PREFIX: Final = "lx1"
FRAME_COUNT_FIELD: Final = "m"
"""Field of a page's hash: how many frames it has. Earlier releases left it empty, or out."""
CHUNK_COUNT_FIELD: Final = "n"
SIZE_FIELD: Final = "size"

_DIGEST_BYTES: Final = 20


def page(scope: bytes, key: bytes) -> str:
    """Name of the hash that holds page `key` of the tenant `scope` (1..64 bytes)."""
    return f"{PREFIX}:p:{{{_page_digest(scope, key)}}}"


def lease(scope: bytes, key: bytes) -> str:
    """Name of the single-flight lease of page `key`, in the page's own slot."""
    return f"{PREFIX}:h:{{{_page_digest(scope, key)}}}"


def mark(scope: bytes, key: bytes) -> str:
    """Name of the mark that page `key` was forgotten, in the page's own slot."""
    return f"{PREFIX}:x:{{{_page_digest(scope, key)}}}"


def page_digest(name: str) -> bytes:
    """The page's digest in its `page` name, 20 bytes: what an index holds in its place."""
    return bytes.fromhex(name[len(PREFIX) + 4 : -1])


def page_of(digest: bytes) -> str:
    """Name of the page with this digest, as `page` gives it."""
    return f"{PREFIX}:p:{{{digest.hex()}}}"


def generations(scope: bytes) -> str:
    """Name of the hash that says when namespaces of the tenant were forgotten."""
    return f"{PREFIX}:f:{{{_scope_digest(scope)}}}"


def namespaces(scope: bytes) -> str:
    """Name of the hash of namespaces that the tenant stored pages of."""
    return f"{PREFIX}:n:{{{_scope_digest(scope)}}}"


def index(scope: bytes, namespace: bytes) -> str:
    """Name of the hash of pages that the tenant stored of one namespace."""
    return f"{PREFIX}:i:{{{_scope_digest(scope)}}}:{namespace.hex()}"


def pins(scope: bytes) -> str:
    """Name of the hash of the tenant's pinned prompts."""
    return f"{PREFIX}:k:{{{_scope_digest(scope)}}}"


def published(scope: bytes) -> str:
    """Name of the hash that says which set nodes of a model take."""
    return f"{PREFIX}:m:{{{_scope_digest(scope)}}}"


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
