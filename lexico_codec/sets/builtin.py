"""The dictionary sets that ship with the package."""

from __future__ import annotations

import functools
from importlib import resources

from lexico_codec.sets.dictionary import DictionarySet
from lexico_proto.errors import UnknownDictionary

_SUFFIX = ".safetensors"


def builtin_sets() -> tuple[str, ...]:
    """Names of the sets that ship with the package, sorted."""
    folder = resources.files("lexico_codec") / "sets"
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(n.removesuffix(_SUFFIX) for n in names if n.endswith(_SUFFIX)))


@functools.cache
def load_builtin(name: str) -> DictionarySet:
    """The set of that name which ships with the package.

    Raises:
        UnknownDictionary: no such set.
    """
    if name not in builtin_sets():
        known = ", ".join(builtin_sets()) or "none"
        raise UnknownDictionary(f"no built-in dictionary set {name!r}; there are: {known}")
    entry = resources.files("lexico_codec") / "sets" / f"{name}{_SUFFIX}"
    return DictionarySet.load(entry.read_bytes())


def find_builtin(digest: bytes) -> DictionarySet | None:
    """The shipped set with that digest, if there is one."""
    sets = (load_builtin(name) for name in builtin_sets())
    return next((found for found in sets if found.digest == digest), None)
