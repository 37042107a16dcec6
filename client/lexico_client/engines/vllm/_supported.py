"""Which vLLM this connector fits, found out at import: an interface that moved is no silent miss.

What is relied upon is recorded in interface.json: for every method of the engine's base class that
the connector has, the names of its parameters, and which of them the engine calls as abstract; and
what is read of the objects that the engine gives to them.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from lexico_client.engines._interfaces import differences, interface_of
from lexico_client.engines.vllm._log import LOG
from lexico_proto.errors import Unsupported

TESTED: Final = (0, 32)
"""Minor release that the tests run with."""
INTERFACE: Final = Path(__file__).with_name("interface.json")


def check_version(version: str) -> None:
    """Refuses releases from before the interface, and says of newer ones that none was tried.

    Raises:
        Unsupported: an older release.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    number = (int(found[1]), int(found[2])) if found else None
    if number is None or number < TESTED:
        raise Unsupported(
            f"vllm {version}: the connector needs {TESTED[0]}.{TESTED[1]} or later; install that, "
            "or leave kv_transfer_config out"
        )
    if number > TESTED:
        LOG.warning(
            "vllm %s is newer than %d.%d, which the connector was tested with: its interface is "
            "the same",
            version,
            *TESTED,
        )


def check_interface(base: type) -> None:
    """Refuses an engine whose methods are not those that were recorded.

    Args:
        base: the engine's base class of connectors.

    Raises:
        Unsupported: naming the method.
    """
    recorded: dict[str, Any] = json.loads(INTERFACE.read_text())
    differing = differences(recorded["methods"], interface_of(base))
    unknown = sorted(getattr(base, "__abstractmethods__", frozenset()) - set(recorded["abstract"]))
    if differing or unknown:
        what = "; ".join([*differing, *(f"{name} is new and must be there" for name in unknown)])
        raise Unsupported(
            f"this vllm's connectors have another interface than {TESTED[0]}.{TESTED[1]}: {what}"
        )


def check_told(told: Iterable[type]) -> None:
    """Refuses an engine that does not say of requests and steps what was recorded: it would be
    missed in the middle of a step, or what makes a request's caches its own not be seen.

    Args:
        told: the engine's classes of what it gives a connector.

    Raises:
        Unsupported: naming the field.
    """
    recorded: dict[str, list[str]] = json.loads(INTERFACE.read_text())["told"]
    found = {each.__name__: parts_told(each) for each in told}
    gone = [f"{name} is gone" for name in recorded if name not in found]
    gone += [
        f"{name}.{part} is gone"
        for name, parts in recorded.items()
        for part in parts
        if name in found and part not in found[name]
    ]
    if gone:
        raise Unsupported(
            f"this vllm tells its connectors otherwise than {TESTED[0]}.{TESTED[1]}: "
            + "; ".join(gone)
        )


def parts_told(told: type) -> set[str]:
    """Of a class: fields, properties, and what a constructor sets."""
    fields = dataclasses.fields(told) if dataclasses.is_dataclass(told) else ()
    made = inspect.unwrap(vars(told).get("__init__", object.__init__))
    set_there = getattr(getattr(made, "__code__", None), "co_names", ())
    names = {*(field.name for field in fields), *dir(told), *set_there}
    return {name for name in names if not name.startswith("__")}
