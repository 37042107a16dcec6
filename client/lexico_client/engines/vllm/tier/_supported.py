"""Whether vLLM's tiers are those that were recorded, found out at import.

What is relied upon is recorded in interface.json: of vLLM's classes that ours are below, the
parameters of the methods that ours have, and which of them are abstract; and the fields of what
they are told, and members of what they answer with.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from lexico_client.engines._interfaces import differences, interface_of
from lexico_client.engines.vllm._supported import TESTED
from lexico_proto.errors import Unsupported

INTERFACE: Final = Path(__file__).with_name("interface.json")


def check_tier_interface(bases: Iterable[type], told: Iterable[type]) -> None:
    """Refuses an engine whose tiers are not those that were recorded.

    Args:
        bases: classes that ours are below.
        told: dataclasses and enumerations.

    Raises:
        Unsupported: naming the method, field or member.
    """
    recorded: dict[str, Any] = json.loads(INTERFACE.read_text())
    wrong: list[str] = []
    for base in bases:
        known = recorded["classes"][base.__name__]
        wrong += differences(known["methods"], interface_of(base))
        abstract: frozenset[str] = getattr(base, "__abstractmethods__", frozenset())
        new = sorted(abstract - set(known["abstract"]))
        wrong += [f"{base.__name__}.{name} is new and must be there" for name in new]
    found = {each.__name__: parts_of(each) for each in told}
    for name, parts in found.items():
        wrong += [f"{name}.{part} is gone" for part in recorded["told"][name] if part not in parts]
    if wrong:
        raise Unsupported(
            f"this vllm's tiers have another interface than {TESTED[0]}.{TESTED[1]}: "
            + "; ".join(wrong)
        )


def parts_of(told: type) -> list[str]:
    """Names of the fields of a dataclass, or of the members of an enumeration."""
    members = getattr(told, "__members__", None)
    return [field.name for field in dataclasses.fields(told)] if members is None else list(members)
