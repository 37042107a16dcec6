"""Which SGLang this backend fits, found out at import: an interface that moved is no silent miss.

What is relied upon is recorded in interface.json: the parameters of every method of the engine's
base class that the backend has, which of them are abstract, and the fields of what it is told.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from lexico_client.engines._interfaces import differences, interface_of
from lexico_client.engines.sglang._log import LOG
from lexico_proto.errors import Unsupported

TESTED: Final = (0, 5, 23)
"""Release that the tests run with, and the first whose hashes of pages bind a request's salt."""
INTERFACE: Final = Path(__file__).with_name("interface.json")
_NAME: Final = ".".join(map(str, TESTED))


def check_version(version: str) -> None:
    """Refuses releases from before the interface, and says of newer ones that none was tried.

    Raises:
        Unsupported: an older release.
    """
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    number = tuple(map(int, found.groups())) if found else None
    if number is None or number < TESTED:
        raise Unsupported(
            f"sglang {version}: the backend needs {_NAME} or later, whose hashes of pages keep "
            "requests with other salts and adapters apart; install that, or leave "
            "--hicache-storage-backend out"
        )
    if number > TESTED:
        LOG.warning(
            "sglang %s is newer than %s, which the backend was tested with: its interface is the "
            "same",
            version,
            _NAME,
        )


def check_interface(base: type, told: Iterable[type]) -> None:
    """Refuses an engine whose methods are not those that were recorded.

    Args:
        base: the engine's base class of storage backends.
        told: dataclasses that it gives a backend.

    Raises:
        Unsupported: naming the method or field.
    """
    recorded: dict[str, Any] = json.loads(INTERFACE.read_text())
    differing = differences(recorded["methods"], interface_of(base))
    unknown = sorted(getattr(base, "__abstractmethods__", frozenset()) - set(recorded["abstract"]))
    found = {each.__name__: fields_of(each) for each in told}
    gone = [
        f"{name}.{field} is gone"
        for name, fields in recorded["told"].items()
        for field in fields
        if field not in found.get(name, ())
    ]
    if differing or unknown or gone:
        new = [f"{name} is new and must be there" for name in unknown]
        raise Unsupported(
            f"this sglang's storage backends have another interface than {_NAME}: "
            + "; ".join([*differing, *new, *gone])
        )


def fields_of(told: type) -> list[str]:
    """Names of the fields of a dataclass."""
    return [field.name for field in dataclasses.fields(told)]
