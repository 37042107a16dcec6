"""What a tenant has in the store: counted, pinned and forgotten.

Pages expire and are evicted by themselves, so no count of them stays right. The ledger notes each
page once it is committed, looks at some notes now and then, and takes out those whose page is
gone: it counts what is there, and what went since it looked last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from lexico_proto.errors import Busy, InvalidInput, QuotaExceeded
from lexico_proto.limits import DIGEST_BYTES, MAX_GROUPS
from lexico_store import keys as keyspace
from lexico_store.checks import check_key, check_scope
from lexico_store.namespace_notes import about_of, packed
from lexico_store.records import PinNote, pinned_bytes
from lexico_store.store import PageStore

T = TypeVar("T")

SAMPLE: Final = 128
"""Notes that an estimate looks at, for each namespace."""
BATCH: Final = 1024
"""Pages that are asked for or removed in one round trip."""
MAX_LABEL_BYTES: Final = 200
TIDY_EVERY: Final = 64
"""Notes of a namespace after which its writer looks at `SAMPLE` of them: so at most about half are
of pages that are gone."""
OTHERS: Final = 2
"""Namespaces that are looked at then: more than the one that may be new."""
MAX_DESCRIPTION_BYTES: Final = 4096
MAX_DESCRIBED: Final = 1024
"""Namespaces of a tenant that are described, about: with a salt for each user there are many, and
what says of what they are does not expire by itself."""
MAX_PINS: Final = 1024
"""Pins of a tenant: their record never expires."""
_PIN_BYTES: Final = 20
_PIN_TRIES: Final = 8
"""Times that a pin is looked at again because somebody else has changed it meanwhile."""


@dataclass(frozen=True)
class NamespaceUse:
    """What is stored of one namespace."""

    namespace: bytes
    about: str
    """What its pages are of, for people to read."""
    pages: int
    size: int
    """Bytes of their frames."""
    gone: int
    """Pages noted that are there no more: they expired or were evicted since the last look."""


@dataclass(frozen=True)
class Pin:
    """Leading pages of a prompt that neither expire nor are evicted."""

    pin: bytes
    """Its name, 20 bytes: the same for the same prompt."""
    namespace: bytes
    label: str
    size: int
    """Bytes of its pages, when it was pinned."""
    keys: tuple[bytes, ...]


class Ledger:
    """Notes of every tenant's pages and pins, beside the pages in their store. Calls block.

    Every call may raise what the store's may.
    """

    def __init__(self, store: PageStore) -> None:
        self._store = store
        self._noted: dict[tuple[bytes, bytes], tuple[int, bool]] = {}
        """By tenant and namespace: notes made here, and whether the namespace is described."""

    def note(
        self,
        tenant: bytes,
        namespace: bytes,
        scope: bytes,
        key: bytes,
        size: int,
        about: str,
        *,
        description: bytes = b"",
        began_us: int = 0,
    ) -> None:
        """Notes a page that was committed just now.

        Args:
            tenant: its scope.
            namespace: of the page's key, 32 bytes.
            scope: of the generation that the page is committed under.
            key: of the page.
            size: bytes of its frames.
            about: what the namespace is of, for people to read.
            description: what it is made of, for `Descriptions`; not kept where it is longer than
                `MAX_DESCRIPTION_BYTES`, nor of more than about `MAX_DESCRIBED` namespaces.
            began_us: when the page's upload began, in microseconds since 1970.
        """
        index = keyspace.index(tenant, namespace)
        made, described = self._noted.get((tenant, namespace), (0, True))
        if made % TIDY_EVERY == 0:
            if len(self._noted) >= BATCH:
                self._noted.clear()
            self._there(index, self._store.sample_record(index, SAMPLE)[1])
            described = _is_described(namespace, self._tidy_others(tenant))
        self._noted[tenant, namespace] = (made + 1, described)
        digest = keyspace.page_digest(keyspace.page(scope, key))
        self._store.write_record(index, {digest: str(size).encode()})
        # After the note, and each time: a namespace without any is taken out, by whoever looks.
        kept = described and len(description) <= MAX_DESCRIPTION_BYTES
        value = packed(about, description if kept else b"", began_us)
        self._store.write_record(keyspace.namespaces(tenant), {namespace: value})

    def usage(self, tenant: bytes) -> list[NamespaceUse]:
        """What is stored, by namespace. Looks at every note; a namespace without any is listed
        this once more."""
        found, over = [], []
        for namespace, about in self._namespaces(tenant).items():
            index = keyspace.index(tenant, namespace)
            noted = self._store.read_record(index)
            there = self._there(index, noted)
            sizes = [int(noted[digest]) for digest in there]
            gone = len(noted) - len(there)
            over += [] if there else [namespace]
            use = NamespaceUse(namespace, about_of(about), len(there), sum(sizes), gone)
            found.append(use)
        if over:
            self._store.remove_fields(keyspace.namespaces(tenant), over)
        return found

    def estimate(self, tenant: bytes) -> int:
        """About how many bytes are stored, from a few notes of each namespace, or of a few of them:
        with a salt for each user there are many."""
        total = 0.0
        check_scope(tenant)
        namespaces, some = self._store.sample_record(keyspace.namespaces(tenant), SAMPLE)
        for namespace in some:
            index = keyspace.index(tenant, namespace)
            count, drawn = self._store.sample_record(index, SAMPLE)
            there = self._there(index, drawn)
            total += count * sum(int(drawn[d]) for d in there) / max(1, len(drawn))
        return round(total * namespaces / max(1, len(some)))

    def forget(self, tenant: bytes, namespace: bytes | None = None) -> int:
        """Forgets every page of a namespace, or of the tenant, pins among them.

        Returns:
            Pages that were removed at once. Whatever is not, is never found again.
        """
        over = [pin for pin in self.pins(tenant) if namespace in (None, pin.namespace)]
        scopes = [self._store.match(tenant, pin.namespace, []).scope for pin in over]
        self._store.forget(tenant, namespace)
        removed = 0
        for each in self._namespaces(tenant) if namespace is None else [namespace]:
            index = keyspace.index(tenant, each)
            for some in _batches(list(self._store.read_record(index))):
                removed += sum(self._store.remaining(some))
                self._store.drop(some)
                self._store.remove_fields(index, some)
            self._store.remove_fields(keyspace.namespaces(tenant), [each])
        for pin, scope in zip(over, scopes, strict=True):
            # Whether they were noted or not: nothing else would ever remove them.
            self._store.discard(scope, pin.keys)
            self._store.remove_fields(keyspace.pins(tenant), [pin.pin])
        return removed

    def forget_prompt(self, tenant: bytes, namespace: bytes, keys: Sequence[bytes]) -> int:
        """Forgets pages of one prompt. Pins that hold one of them end before it.

        Returns:
            How many of them were there.
        """
        scope = self._store.match(tenant, namespace, []).scope
        removed = 0
        for some in _batches(keys):
            removed += sum(self._store.forget_pages(scope, some))
            digests = [keyspace.page_digest(keyspace.page(scope, key)) for key in some]
            self._store.remove_fields(keyspace.index(tenant, namespace), digests)
        gone = set(keys)
        for pin in self.pins(tenant):
            if pin.namespace == namespace and not gone.isdisjoint(pin.keys):
                end = next(at for at, key in enumerate(pin.keys) if key in gone)
                self._store.discard(scope, pin.keys[end:])
                self._shorten(tenant, pin, scope, end)
        return removed

    def _shorten(self, tenant: bytes, pin: Pin, scope: bytes, end: int) -> None:
        """Keeps the first `end` pages of a pin."""
        kept = pin.keys[:end]
        if kept:
            size = self._bytes_of(tenant, pin.namespace, scope, kept)
            shorter = Pin(pin.pin, pin.namespace, pin.label, size, kept)
            self._store.write_record(keyspace.pins(tenant), {pin.pin: _packed(shorter)})
        else:
            self._store.remove_fields(keyspace.pins(tenant), [pin.pin])

    def pin(
        self, tenant: bytes, namespace: bytes, keys: Sequence[bytes], label: str, most: int | None
    ) -> Pin | None:
        """Pins the leading pages of a prompt that are there.

        Args:
            tenant: its scope.
            namespace: of the keys.
            keys: of consecutive pages from the start of a sequence.
            label: for people to read, at most 200 bytes.
            most: bytes that all pins of the tenant may hold; None for no bound.

        Returns:
            None where the prompt would take them over `most`: nothing is pinned then. The pin of
            a prompt of which nothing is there has no keys and is not kept.
        """
        if len(label.encode()) > MAX_LABEL_BYTES:
            raise InvalidInput(f"a pin's label has at most {MAX_LABEL_BYTES} bytes")
        found = self._store.match(tenant, namespace, keys)
        leading = [*found.present, False].index(False)
        name = hashlib.blake2b(namespace + keys[-1], digest_size=_PIN_BYTES).digest()
        for _ in range(_PIN_TRIES):
            kept = self._store.read_record(keyspace.pins(tenant))
            # What it held before it holds on: pages behind one that was lost would stay unlisted.
            former = kept.get(name, b"")
            before = len(_unpacked(name, former).keys) if former else 0
            held = tuple(keys[: max(leading, before)])
            size = self._bytes_of(tenant, namespace, found.scope, held)
            pin, bound = Pin(name, namespace, label, size, held), -1 if most is None else most
            others = {field: value for field, value in kept.items() if field != name}
            if not held:
                over = 0 <= bound < sum(map(pinned_bytes, others.values()))
                return None if over else pin
            # First the note: a page that neither expires nor is listed would stay for ever. Whether
            # it fits is decided with it, in one step: others pin too.
            note = self._store.note_pin(
                keyspace.pins(tenant), name, _packed(pin), former, bound, MAX_PINS
            )
            if note is PinNote.FULL:
                raise QuotaExceeded(f"the tenant has {MAX_PINS} pins: unpin another prompt first")
            if note is PinNote.OVER:
                return None
            if note is PinNote.NOTED:
                for some in _batches(held):
                    self._store.persist(found.scope, some)
                return pin
        raise Busy("others pin and unpin this prompt: pin it again")

    def unpin(self, tenant: bytes, name: bytes, ttl_s: float) -> int:
        """Lets the pages of a pin expire `ttl_s` from now, but for those of other pins.

        Returns:
            How many.

        Raises:
            InvalidInput: no pin has this name.
        """
        pins = self.pins(tenant)
        pin = next((each for each in pins if each.pin == name), None)
        if pin is None:
            raise InvalidInput(f"no pin {name.hex()}: `lexico quota` lists them")
        others = [each.keys for each in pins if each is not pin]
        # Pins of one sequence share its beginning: what no other pin holds are its last pages.
        shared = max((_shared(pin.keys, keys) for keys in others), default=0)
        scope = self._store.match(tenant, pin.namespace, []).scope
        found = self._store.expire(scope, pin.keys[shared:], ttl_s, shared)
        self._store.remove_fields(keyspace.pins(tenant), [name])
        return sum(found)

    def pins(self, tenant: bytes) -> list[Pin]:
        """The tenant's pins."""
        check_scope(tenant)
        kept = self._store.read_record(keyspace.pins(tenant))
        return [_unpacked(name, value) for name, value in sorted(kept.items())]

    def _namespaces(self, tenant: bytes) -> dict[bytes, bytes]:
        check_scope(tenant)
        return self._store.read_record(keyspace.namespaces(tenant))

    def _tidy_others(self, tenant: bytes) -> int:
        """Looks at a few namespaces, to which nobody may ever come back.

        Returns:
            How many the tenant has.
        """
        count, drawn = self._store.sample_record(keyspace.namespaces(tenant), OTHERS)
        for namespace in drawn:
            index = keyspace.index(tenant, namespace)
            self._there(index, self._store.sample_record(index, SAMPLE)[1])
            if not self._store.sample_record(index, 1)[0]:
                self._store.remove_fields(keyspace.namespaces(tenant), [namespace])
        return count

    def _there(self, index: str, noted: dict[bytes, bytes]) -> list[bytes]:
        """Those of the notes whose page is there; the others are taken out."""
        there = []
        for some in _batches(list(noted)):
            present = dict(zip(some, self._store.remaining(some), strict=True))
            there += [digest for digest in some if present[digest]]
            gone = [digest for digest in some if not present[digest]]
            if gone:
                self._store.remove_fields(index, gone)
        return there

    def _bytes_of(
        self, tenant: bytes, namespace: bytes, scope: bytes, keys: Sequence[bytes]
    ) -> int:
        """Of pages, by their notes. What is not noted in this namespace is asked for: whoever names
        another one must not have it for nothing."""
        index, total = keyspace.index(tenant, namespace), 0
        for some in _batches(keys):
            digests = {keyspace.page_digest(keyspace.page(scope, key)): key for key in some}
            noted = self._store.read_record(index, list(digests))
            total += sum(map(int, noted.values()))
            others = [key for digest, key in digests.items() if digest not in noted]
            total += sum(map(sum, self._store.frame_bytes(scope, others, range(MAX_GROUPS))))
        return total


def _is_described(namespace: bytes, namespaces: int) -> bool:
    """Whether this namespace is one of those that are described, where a tenant has so many: by
    its digest, so that the answer stays the same while their number does."""
    return int.from_bytes(namespace[:4]) * namespaces < MAX_DESCRIBED << 32


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[at : at + BATCH] for at in range(0, len(items), BATCH))


def _shared(keys: Sequence[bytes], others: Sequence[bytes]) -> int:
    pairs = zip(keys, others, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(keys), len(others)))


def _packed(pin: Pin) -> bytes:
    about = {"namespace": pin.namespace.hex(), "label": pin.label, "bytes": pin.size}
    return json.dumps(about).encode() + b"\n" + b"".join(pin.keys)


def _unpacked(name: bytes, value: bytes) -> Pin:
    line, _, joined = value.partition(b"\n")
    about: dict[str, Any] = json.loads(line)
    keys = tuple(joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES))
    for key in keys:
        check_key(key)
    return Pin(name, bytes.fromhex(about["namespace"]), about["label"], about["bytes"], keys)
