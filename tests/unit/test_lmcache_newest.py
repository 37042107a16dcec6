"""What LMCache's adapter leaves of a prompt to be computed, though the service has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.lmcache_fakes import HEAD_DIM, HEADS, LAYERS, TOKENS
from tests.support.residual_sets import residual_set
from tests.unit.test_lmcache_store import COUNT, folder, objects, running

__all__ = ["folder"]  # a fixture


@pytest.mark.parametrize(
    ("recent", "promised"), [(1, 5), (2, 4), (TOKENS + 1, 4), (TOKENS + 2, 3), (99 * TOKENS, 0)]
)
async def test_the_newest_tokens_of_a_prompt_are_computed(
    folder: Path, tmp_path: Path, recent: int, promised: int
) -> None:
    """With a lossy codec; lossless ones are as good as computed."""
    file = tmp_path / "set.safetensors"
    residual_set(LAYERS, HEADS, HEAD_DIM).save(file)
    for codec, found in (("near", promised), ("lossless", COUNT)):
        settings: dict[str, Any] = {"codec": codec, "recent_tokens": recent}
        if codec == "near":
            settings["dictionary"] = str(file)
        async with running(folder, tmp_path, **settings) as rig:
            given = objects()
            assert (await rig.store.store(list(zip(rig.keys, given, strict=True))))[0]
            there = await rig.find(given[0].shape)
            assert there == [True] * found + [False] * (COUNT - found)
