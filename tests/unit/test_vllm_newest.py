"""The newest release of vLLM, which no test runs: what connector and tier check at import of it."""

from __future__ import annotations

import copy
import json
from dataclasses import make_dataclass
from typing import Any

import pytest

from lexico_client.engines.vllm import _supported
from lexico_client.engines.vllm.tier import _supported as _tier
from lexico_proto.errors import Unsupported
from tests.support import vllm_tier_interface
from tests.support.vllm_newest import RECORD

Recorded = dict[str, Any]


@pytest.fixture
def recorded() -> Recorded:
    found: Recorded = json.loads(RECORD.read_text())
    return found


def base(name: str, recorded: Recorded) -> type:
    """A class of the engine's with the methods that it has there."""
    namespace: dict[str, Any] = {}
    methods = recorded["classes"][name]["methods"]
    for each, parameters in methods.items():
        exec(f"def {each}({', '.join(parameters)}): ...", namespace)
    made = type(name, (), {each: namespace[each] for each in methods})
    made.__abstractmethods__ = frozenset(  # type: ignore[attr-defined]
        recorded["classes"][name]["abstract"]
    )
    return made


def told(names: set[str], recorded: Recorded) -> list[type]:
    return [make_dataclass(each, recorded["told"][each]) for each in sorted(names)]


def check(recorded: Recorded) -> None:
    """What an import of all of ours does.

    Raises:
        Unsupported: what moved.
    """
    _supported.check_interface(base("KVConnectorBase_V1", recorded))
    tiers = set(vllm_tier_interface.TOLD)
    _supported.check_told(told(set(recorded["told"]) - tiers, recorded))
    bases = [base(name, recorded) for name in vllm_tier_interface.CLASSES]
    _tier.check_tier_interface(bases, told(tiers, recorded))


def test_the_newest_release_is_taken(recorded: Recorded, caplog: pytest.LogCaptureFixture) -> None:
    check(recorded)
    _supported.check_version(recorded["vllm"])
    assert recorded["vllm"] in caplog.text, "with a warning: no test ran with it"


@pytest.mark.parametrize(
    ("kind", "name", "part"),
    [
        ("classes", "KVConnectorBase_V1", "get_num_new_matched_tokens"),
        ("classes", "SecondaryTierManager", "submit_store"),
        ("told", "Request", "mm_features"),
        ("told", "TransferJob", "keys"),
    ],
)
def test_what_it_would_lack_is_missed(recorded: Recorded, kind: str, name: str, part: str) -> None:
    changed = copy.deepcopy(recorded)
    if kind == "classes":
        del changed[kind][name]["methods"][part]
    else:
        changed[kind][name].remove(part)
    with pytest.raises(Unsupported, match=f"{part} is gone"):
        check(changed)
