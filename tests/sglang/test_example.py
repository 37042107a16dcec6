"""`python -m examples.sglang`, as somebody without a device would run it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.support.sglang_engine import PAGE_TOKENS, PYTHON, ROOT, environment_on_cpu
from tests.support.vllm_service import EngineService


def test_a_conversation_over_two_engines(service: EngineService, model: Path) -> None:
    settings = service.settings
    patient = {name: value for name, value in settings.items() if name.endswith("_seconds")}
    options = (ROOT / "examples" / "sglang" / "cpu.json").read_text()
    command = [
        *(PYTHON, "-m", "examples.sglang", "--model", str(model)),
        *("--reload", settings["reload"], "--offload", settings["offload"]),
        *("--settings", json.dumps(patient), "--options", options),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment_on_cpu(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    title, *rows = (line.split() for line in done.stdout.splitlines())
    assert title == ["engine", "prompt", "loaded", "seconds", "answer"]
    assert [row[0] for row in rows] == ["A", "B", "A", "B"]
    prompts, loaded = ([int(row[place]) for row in rows] for place in (1, 2))
    assert prompts == sorted(set(prompts))
    assert loaded[0] == 0
    for before, found in zip(prompts, loaded[1:], strict=False):
        assert found >= before // PAGE_TOKENS * PAGE_TOKENS
