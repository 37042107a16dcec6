"""The dictionary sets that ship with the package."""

from __future__ import annotations

import functools

from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.sets.shipped import builtin_bytes, builtin_digests, builtin_sets

__all__ = ["builtin_sets", "find_builtin", "load_builtin"]


@functools.cache
def load_builtin(name: str) -> DictionarySet:
    """The set of that name which ships with the package.

    Raises:
        UnknownDictionary: no such set.
    """
    return DictionarySet.load(builtin_bytes(name))


def find_builtin(digest: bytes) -> DictionarySet | None:
    """The shipped set with that digest, if there is one."""
    name = builtin_digests().get(digest)
    return None if name is None else load_builtin(name)
