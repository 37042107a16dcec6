"""`python -m examples.lmcache`, as a user runs it on a CPU."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path
from typing import Final

from tests.support.lmcache_pairs import Pairs
from tests.support.lmcache_server import CHUNK_TOKENS, ENVIRONMENT, PYTHON
from tests.support.vllm_engine import ROOT
from tests.support.vllm_service import EngineService

_VLLM: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}


def test_two_servers_take_turns_in_a_conversation(
    pairs: Pairs, service: EngineService, model: Path
) -> None:
    """From the second turn on, the whole chunks of what was said before are in a cache."""
    pairs.close()
    path = [ROOT, ROOT / "proto", ROOT / "client"]
    addresses = service.settings
    done = subprocess.run(
        [
            *(PYTHON, "-m", "examples.lmcache", "--model", str(model)),
            *("--layout", "vllm-cpu", "--dtype", "float32"),
            *("--reload", addresses["reload"], "--offload", addresses["offload"]),
        ],
        env={**os.environ, **ENVIRONMENT, **_VLLM, "PYTHONPATH": ":".join(map(str, path))},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    *_, header, first, second, third, fourth = done.stdout.splitlines()
    assert header.split() == ["node", "prompt", "cached", "loaded", "seconds", "answer"]
    rows = [line.split()[:4] for line in (first, second, third, fourth)]
    assert [name for name, *_ in rows] == ["A", "B", "A", "B"]
    prompts, cached, loaded = zip(*(map(int, numbers) for _, *numbers in rows), strict=True)
    assert (cached[0], loaded[0]) == (0, 0)
    assert loaded[1] == cached[1] == prompts[0] // CHUNK_TOKENS * CHUNK_TOKENS
    assert all(now > before for before, now in itertools.pairwise(cached))
    assert loaded[2] > 0
    assert loaded[3] > loaded[1]
