"""Files of the dictionary sets that ship with the package: their names and bytes, without torch."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Final

from lexico_proto.errors import UnknownDictionary
from lexico_proto.limits import DIGEST_BYTES

_SUFFIX: Final = ".safetensors"


def builtin_sets() -> tuple[str, ...]:
    """Names of the sets that ship with the package, sorted."""
    folder = resources.files("lexico_codec") / "sets"
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(n.removesuffix(_SUFFIX) for n in names if n.endswith(_SUFFIX)))


def builtin_bytes(name: str) -> bytes:
    """The artefact of the set of that name.

    Raises:
        UnknownDictionary: no such set.
    """
    if name not in builtin_sets():
        known = ", ".join(builtin_sets()) or "none"
        raise UnknownDictionary(f"no built-in dictionary set {name!r}; there are: {known}")
    return (resources.files("lexico_codec") / "sets" / f"{name}{_SUFFIX}").read_bytes()


@functools.cache
def builtin_digests() -> Mapping[bytes, str]:
    """digest → name of every set that ships with the package."""
    names = builtin_sets()
    digests = (hashlib.blake2b(builtin_bytes(n), digest_size=DIGEST_BYTES).digest() for n in names)
    return MappingProxyType(dict(zip(digests, names, strict=True)))
