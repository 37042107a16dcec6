"""A start of Ray of which a process ends: it is told at once, however long a start may take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE_S

_START = """
import os, sys
from lexico_proto.errors import ConfigurationError
from lexico_worker.ray_runtime import RayConfig, RayRuntime

class Broken(RayRuntime):
    def _init(self):
        from ray._private import services  # not before: Ray reads its settings as it is imported

        setattr(services, sys.argv[1], sys.argv[2])
        super()._init()

runtime = Broken(RayConfig(num_cpus=1, object_store_bytes=1 << 27, start_s=1e6))
try:
    runtime.start()
except ConfigurationError as error:
    print(error)
    sys.stdout.flush()
    runtime.stop()
    os._exit(2)
"""


@pytest.mark.parametrize(
    ("executable", "name", "ends", "how"),
    [
        ("GCS_SERVER_EXECUTABLE", "gcs_server", "kill -ABRT $$", "by signal 6"),
        ("RAYLET_EXECUTABLE", "raylet", "exit 3", "with exit code 3"),
    ],
)
def test_a_process_of_ray_that_ends_as_it_starts_ends_the_start(
    executable: str, name: str, ends: str, how: str, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{ends}\n")
    program.chmod(0o700)
    command = [sys.executable, "-c", _START, executable, str(program)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.stdout.strip() == f"Ray does not start: its {name} ended {how}", ended.stderr
    assert ended.returncode == 2
