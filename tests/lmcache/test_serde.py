"""The serde behind an engine: LMCache's own adapters keep what one server stored, for another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.lmcache.conftest import CHUNKS, LAYOUT, LOADED
from tests.support.engine_prompts import Plain, Prompts
from tests.support.lmcache_pairs import Pairs
from tests.support.lmcache_server import CHUNK_TOKENS, MODULE
from tests.support.waiting import wait_until

RAW = 30 * 2 * CHUNK_TOKENS * 3 * 64 * 4
"""Bytes of an object of SmolLM2 in float32."""


def serde(model: Path, adapter: dict[str, Any], padded_to: float) -> dict[str, Any]:
    """An adapter of LMCache's own, with our serde."""
    return {
        "type": "plugin",
        "module_path": MODULE,
        "class_name": "LMCacheAdapter",
        "adapter_params": adapter,
        "serde": {"type": "lexico", **LAYOUT, "model": str(model), "padded_to": padded_to},
    }


def test_objects_in_files_are_loaded_by_a_server_that_was_started_again(
    pairs: Pairs, model: Path, prompts: Prompts, plain: Plain, tmp_path: Path
) -> None:
    pair = pairs.like(serde(model, {"type": "fs", "base_path": str(tmp_path)}, 0.9))
    found = pair.engine.generate(*prompts.apart[:2])
    assert (found.tokens, found.cached) == (plain.apart[:2], [0] * 2)
    wait_until(lambda: len(list(tmp_path.glob("*.data"))) == 2 * CHUNKS, "objects in files")
    pair.server.settle()
    assert {file.stat().st_size for file in tmp_path.glob("*.data")} == {int(0.9 * RAW)}
    pair = pairs.again()
    found = pair.engine.generate(*prompts.apart[:2])
    assert (found.tokens, found.cached) == (plain.apart[:2], [LOADED] * 2)
    assert "Serde task" not in pair.server.said()


def test_objects_in_slots_take_as_many_bytes_as_there_are(
    pairs: Pairs, model: Path, prompts: Prompts, plain: Plain, tmp_path: Path
) -> None:
    """An adapter that takes back what there is: nothing is filled up."""
    device = tmp_path / "dax.img"
    device.touch()
    os.truncate(device, 1 << 27)
    slots = {"device_path": str(device), "max_dax_size_gb": 1 / 8, "slot_bytes": 1 << 22}
    pair = pairs.like(serde(model, {"type": "dax", **slots}, 0))
    computed = pair.engine.generate(prompts.apart[0])
    assert (computed.tokens[0], computed.cached) == (plain.apart[0], [0])

    def hit() -> bool:
        pair.forget()
        found = pair.engine.generate(prompts.apart[0])
        assert found.tokens == computed.tokens
        return found.cached == [LOADED]

    wait_until(hit, "a hit", pair.server.said, every_s=0.5)
    assert "Serde task" not in pair.server.said()
