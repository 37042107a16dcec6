"""client/lexico_client/engines/lmcache/interface.json, out of the LMCache that is installed.

python -m tests.support.lmcache_interface    # writes it; run by the Python that has LMCache
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any, Final

from lexico_client.engines._interfaces import interface_of
from lexico_client.engines.lmcache import _supported

HERE: Final = Path(_supported.__file__).parent
OURS: Final = {
    "L2AdapterInterface": ("adapter.py", "LexicoL2Adapter"),
    "Serializer": ("serde.py", "LexicoSerializer"),
    "Deserializer": ("serde.py", "LexicoDeserializer"),
}
"""Class of LMCache's → file and name of the one below it."""
OWN: Final = {"__init__"}
"""Methods whose parameters are ours: LMCache calls its own with none that we do not give."""


def overridden(base: str) -> list[str]:
    """Methods that our class has in place of LMCache's, or beside them."""
    file, name = OURS[base]
    tree = ast.parse((HERE / file).read_text())
    (ours,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return [each.name for each in ours.body if isinstance(each, ast.FunctionDef)]


def parameters(base: str, method: str) -> list[str]:
    """Names of the parameters of a method of ours."""
    file, name = OURS[base]
    tree = ast.parse((HERE / file).read_text())
    (ours,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    (found,) = (
        each for each in ours.body if isinstance(each, ast.FunctionDef) and each.name == method
    )
    return [each.arg for each in found.args.args]


def record(bases: dict[str, type], version: str) -> dict[str, Any]:
    """What is relied upon of LMCache's classes."""
    classes = {}
    for name, base in bases.items():
        found = interface_of(base)
        names = [each for each in overridden(name) if each in found and each not in OWN]
        classes[name] = {
            "abstract": sorted(getattr(base, "__abstractmethods__", frozenset())),
            "methods": {each: found[each] for each in sorted(names)},
        }
    return {"lmcache": version, "classes": classes}


def main() -> None:
    import lmcache
    from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface
    from lmcache.v1.distributed.serde import Deserializer, Serializer

    bases = {
        "L2AdapterInterface": L2AdapterInterface,
        "Serializer": Serializer,
        "Deserializer": Deserializer,
    }
    text = json.dumps(record(bases, lmcache.__version__), indent=1)
    _supported.INTERFACE.write_text(text + "\n")


if __name__ == "__main__":
    main()
