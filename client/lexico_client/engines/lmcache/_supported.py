"""Which LMCache this fits, found out at import: an interface that moved is no silent miss.

What is relied upon is recorded in interface.json: for each of LMCache's classes that ours are
below, the names of the parameters of the methods that ours have, and which of them are abstract.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from lexico_client.engines._interfaces import differences, interface_of
from lexico_client.engines.lmcache._log import LOG
from lexico_proto.errors import Unsupported

TESTED: Final = (0, 5, 6)
"""Release that the tests run with."""
INTERFACE: Final = Path(__file__).with_name("interface.json")


def check_version(version: str) -> None:
    """Refuses releases from before the interface, and says of newer ones that none was tried.

    Raises:
        Unsupported: an older release.
    """
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    number = tuple(int(part) for part in found.groups()) if found else None
    tested = ".".join(map(str, TESTED))
    if number is None or number < TESTED:
        raise Unsupported(f"lmcache {version}: {tested} or later is needed; install that")
    if number[:2] > TESTED[:2]:
        LOG.warning("lmcache %s is newer than %s, which this was tested with", version, tested)


def check_interface(name: str, base: type) -> None:
    """Refuses a class of LMCache's whose methods are not those that were recorded.

    Args:
        name: as it is recorded.
        base: the class.

    Raises:
        Unsupported: naming the method.
    """
    recorded: dict[str, Any] = json.loads(INTERFACE.read_text())["classes"][name]
    differing = differences(recorded["methods"], interface_of(base))
    unknown = sorted(getattr(base, "__abstractmethods__", frozenset()) - set(recorded["abstract"]))
    if differing or unknown:
        what = "; ".join([*differing, *(f"{each} is new and must be there" for each in unknown)])
        tested = ".".join(map(str, TESTED))
        raise Unsupported(f"this lmcache's {name} has another interface than {tested}: {what}")
