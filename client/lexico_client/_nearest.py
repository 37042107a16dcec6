"""The namespaces that a tenant has pages of, seen from the one that a prompt has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from lexico_codec.identity import Identity
from lexico_codec.namespaces import namespace_digest
from lexico_codec.wire import identity_from_wire
from lexico_proto.errors import LexicoError
from lexico_proto.v1 import reload_pb2 as reload


@dataclass(frozen=True)
class Difference:
    """A part in which two identities differ, and what each of them has."""

    part: str
    ours: str
    theirs: str


@dataclass(frozen=True)
class StoredNamespace:
    """A namespace that pages are stored of."""

    identity: Identity
    """What it is made of. Of a salt that is not the caller's own it is only known that there is
    one: it is left out, so that `namespace` is not the one that is stored."""
    stored_s: float
    """When the upload began that stored the newest of its pages, in seconds since 1970."""
    differences: tuple[Difference, ...]
    """From the identity that was asked about; empty for that one itself."""
    tokens: int | None = None
    """Leading tokens of the prompt that are stored there; None where that was not asked, or cannot
    be for the salt."""

    @property
    def other_salt(self) -> bool:
        """Whether its salt is not the caller's own, so that its pages cannot be asked for."""
        return any(each.part == "salt" and each.theirs != "none" for each in self.differences)


def nearest_first(
    ours: Identity, messages: Iterable[reload.StoredNamespace]
) -> tuple[StoredNamespace, ...]:
    """What a server listed: those that differ in fewest parts first, of these the newest. One that
    this node does not understand is left out."""
    stored = [each for message in messages if (each := _compared(ours, message)) is not None]
    return tuple(sorted(stored, key=lambda each: (len(each.differences), -each.stored_s)))


def _compared(ours: Identity, message: reload.StoredNamespace) -> StoredNamespace | None:
    try:
        theirs = identity_from_wire(message.spec)
        salted = replace(theirs, salt=ours.salt)
        alike = namespace_digest(salted.namespace) == message.digest
        if message.salted != bool(ours.salt) or not alike:
            differs = tuple(_differences(ours, salted))
            if message.salted:
                differs += (Difference("salt", _salt(ours), "one that is not told"),)
            elif namespace_digest(theirs.namespace) != message.digest:
                return None  # a release that hashes otherwise
            elif ours.salt:
                differs += (Difference("salt", _salt(ours), "none"),)
            return StoredNamespace(theirs, message.stored_s, differs)
        return StoredNamespace(salted, message.stored_s, tuple(_differences(ours, salted)))
    except LexicoError:
        return None


def _differences(ours: Identity, theirs: Identity) -> Iterator[Difference]:
    """But for the salt."""
    here, there = ({part.name: part.says for part in each.parts} for each in (ours, theirs))
    for name in ours.difference(theirs):
        said = Difference(name, here.get(name, "none"), there.get(name, "none"))
        if said.ours == said.theirs:  # rotary frequencies that people are shown one of
            said = replace(said, theirs=f"{said.theirs}, but {_rope_difference(ours, theirs)}")
        yield said


def _rope_difference(ours: Identity, theirs: Identity) -> str:
    here, there = ours.geometry.rope, theirs.geometry.rope
    words = here.difference(there) if here is not None and there is not None else ""
    return words or "it turns other pairs by less than one percent more or less"


def _salt(ours: Identity) -> str:
    return ours.salt.hex() or "none"
