"""The one place where a dictionary set is found for a model, or checked against one.

A set fits a model that has the layers, the KV heads, the head dimension and the rotary embedding of
the model it was made from. Another rotary embedding is refused for sets of keys before RoPE as
well: there it is no matter of positions, but it means other weights, and what the set weighs by,
how much the model's predictions feel an error, was measured under the first one.

Codecs are known here by what `SetUser` says of them alone: they stand above the sets.
"""

from __future__ import annotations

import logging
from typing import ClassVar, Protocol, Self, TypeVar

from lexico_codec.geometry import Geometry
from lexico_codec.sets.builtin import builtin_sets, load_builtin
from lexico_codec.sets.dictionary import DictionarySet
from lexico_proto.errors import ConfigurationError, DictionaryMismatch, UnknownDictionary

_log = logging.getLogger(__name__)


class SetUser(Protocol):
    """What is to be known of a codec: `codecs.codec.Codec` has it."""

    name: ClassVar[str]
    needs_dictionary: ClassVar[bool]
    set_of: ClassVar[str]

    def for_set(self, dictionary: DictionarySet, geometry: Geometry) -> Self:
        """The codec with what the set leaves no choice about.

        Raises:
            DictionaryMismatch: it is configured for another set.
        """


Kind = TypeVar("Kind", bound=DictionarySet)
User = TypeVar("User", bound=SetUser)


def choose(
    codec: User,
    dictionary: DictionarySet | bytes | None,
    geometry: Geometry,
    asked: str = "",
) -> tuple[User, DictionarySet | bytes | None]:
    """The set that a codec codes a model's cache with, and the codec as the set has it.

    Args:
        codec: as the user configured it.
        dictionary: a set; the digest of one that is registered, which is not looked at here; None
            for the built-in one, where the codec needs one.
        geometry: of the whole model.
        asked: what the user calls the codec, for messages: `preset near`.

    Raises:
        ConfigurationError: no single built-in set serves.
        DictionaryMismatch: the set given is for another model or another codec.
    """
    asked = asked or f"codec {codec.name}"
    if dictionary is None and codec.needs_dictionary:
        dictionary = find(codec, geometry, asked)
    if not isinstance(dictionary, DictionarySet):
        return codec, dictionary
    check_model(dictionary, geometry)
    if not codec.needs_dictionary:
        return codec, dictionary
    if not dictionary.serves(codec.name):
        raise DictionaryMismatch(
            f"{_needs(codec, asked)}; the set of {dictionary.info.model} that was given is for "
            "another codec"
        )
    return codec.for_set(dictionary, geometry), dictionary


def find(codec: SetUser, geometry: Geometry, asked: str) -> DictionarySet:
    """The one built-in set that fits a model and was made for a codec.

    Args:
        codec, geometry, asked: as for `choose`.

    Raises:
        ConfigurationError: there is none, or there are several.
    """
    fitting, serving = _built_in(codec, geometry)
    if len(serving) != 1:
        why = "that serve equally" if serving else "that fit it, for other codecs"
        models = ", ".join(found.info.model for found in serving or fitting) or "none"
        raise ConfigurationError(
            f"{_needs(codec, asked)} ({geometry.layers} layers, {geometry.kv_heads} KV heads, "
            f"head_dim {geometry.head_dim}): give it as `dictionary`. Built-in sets {why}: {models}"
        )
    _log.info(
        "built-in dictionary set chosen: codec=%s trained_on=%s", codec.name, serving[0].info.model
    )
    return serving[0]


def is_built_in(codec: SetUser, geometry: Geometry) -> bool:
    """Whether a built-in set serves, or several: `find` then asks which."""
    return bool(_built_in(codec, geometry)[1])


def set_of(codec: SetUser) -> str:
    """The codec that a set is trained for, to serve this one: `lexico train --codec`."""
    return codec.set_of or codec.name


def fitting_builtin(geometry: Geometry) -> list[tuple[str, DictionarySet]]:
    """Name and set of every built-in set that fits a model, whatever codec it is for.

    One that does not say its rotary embedding is taken to be of a model without.
    """
    sets = ((name, load_builtin(name)) for name in builtin_sets())
    return [
        (name, found)
        for name, found in sets
        if not _differences(found, geometry) and (geometry.rope is None or found.rope is not None)
    ]


def check_model(dictionary: DictionarySet, geometry: Geometry, called: str = "") -> None:
    """Refuses a set that was made from another model than the one that it is to code.

    A set that does not say its rotary embedding is taken as it is.

    Args:
        dictionary: the set.
        geometry: of the whole model; its element type does not matter.
        called: what the user calls the set, for the message.

    Raises:
        DictionaryMismatch: naming what differs.
        InvalidInput: a set whose rotary embedding is none.
    """
    found = _differences(dictionary, geometry)
    if found:
        name = f"{called}, " if called else ""
        raise DictionaryMismatch(
            f"dictionary set {name}of {dictionary.info.model}: made for another model, which has "
            f"{'; '.join(found)}"
        )


def at_hand(codec: SetUser, dictionary: DictionarySet | None, kind: type[Kind]) -> Kind:
    """The set to code with, of the kind that the codec takes.

    Raises:
        UnknownDictionary: there is no set.
        DictionaryMismatch: one for another codec.
    """
    if dictionary is None:
        raise UnknownDictionary(f"codec {codec.name}: no dictionary set was given")
    if not isinstance(dictionary, kind) or not dictionary.serves(codec.name):
        raise DictionaryMismatch(
            f"codec {codec.name}: the dictionary set of {dictionary.info.model} is "
            f"{dictionary.holds}; make one with `lexico train --codec {set_of(codec)}`"
        )
    return dictionary


def _differences(dictionary: DictionarySet, geometry: Geometry) -> list[str]:
    """What the model of the set has that the model of the geometry has not."""
    found = [
        f"{theirs} {what}, not {ours}"
        for what, theirs, ours in (
            ("layers", dictionary.layers, geometry.layers),
            ("KV heads", dictionary.kv_heads, geometry.kv_heads),
            ("components a head", dictionary.head_dim, geometry.head_dim),
        )
        if theirs != ours
    ]
    rope = dictionary.rope
    if rope is not None and geometry.rope is None:
        found.append("a rotary embedding, not none")
    elif rope is not None and geometry.rope is not None:
        difference = rope.difference(geometry.rope)
        if difference:
            found.append(f"another rotary embedding: {difference}")
    return found


def _built_in(
    codec: SetUser, geometry: Geometry
) -> tuple[list[DictionarySet], list[DictionarySet]]:
    """Built-in sets that fit a model, and those of them that were made for a codec."""
    fitting = [found for _, found in fitting_builtin(geometry)]
    return fitting, [found for found in fitting if found.serves(codec.name)]


def _needs(codec: SetUser, asked: str) -> str:
    return f"{asked} needs a set trained with `lexico train --codec {set_of(codec)}` for this model"
