"""Where encoded pages live: a store chosen by URL, with leases and dictionary sets beside them.

Use:
    with open_store("redis://:secret@10.0.0.7:6379/0") as store:
        store.commit(scope, key, frames, ttl_s=3600)
        first_groups = store.read(scope, keys, group=0)
"""

from lexico_store.descriptions import Absence, Cause, Descriptions
from lexico_store.embedded import EmbeddedServer
from lexico_store.findings import Finding, Level
from lexico_store.lease import Lease
from lexico_store.ledger import Ledger
from lexico_store.memory import MemoryStore
from lexico_store.namespace_notes import Described
from lexico_store.opening import open_store
from lexico_store.published import Published, PublishedSets
from lexico_store.settings import StoreSettings
from lexico_store.sharing import reachable_store
from lexico_store.store import PageStore
from lexico_store.usage import StoreUsage

__all__ = [
    "Absence",
    "Cause",
    "Described",
    "Descriptions",
    "EmbeddedServer",
    "Finding",
    "Lease",
    "Ledger",
    "Level",
    "MemoryStore",
    "PageStore",
    "Published",
    "PublishedSets",
    "StoreSettings",
    "StoreUsage",
    "open_store",
    "reachable_store",
]
