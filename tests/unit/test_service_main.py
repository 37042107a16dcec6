"""What the `lexico` command sets before it imports anything else."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

_SHOWN = """
import os, sys
from lexico_services import supervisor
from lexico_services.__main__ import run
assert "grpc" not in sys.modules
supervisor.run = lambda work: print(os.environ.get("GRPC_ENABLE_FORK_SUPPORT")) or 0
sys.exit(run())
"""


@pytest.mark.parametrize("command", ["serve", "offload-server"])
@pytest.mark.parametrize(("given", "found"), [(None, "0"), ("1", "1")])
def test_a_service_that_starts_ray_forks_without_grpcs_handlers(
    command: str, given: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is None:
        monkeypatch.delenv("GRPC_ENABLE_FORK_SUPPORT", raising=False)
    else:
        monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", given)
    shown = subprocess.run(
        [sys.executable, "-c", _SHOWN, command], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == [found]


_FORKS = """
import subprocess, sys
from concurrent.futures import ThreadPoolExecutor
import grpc
server = grpc.server(ThreadPoolExecutor(1))
server.add_insecure_port("127.0.0.1:0")
server.start()
for _ in range(100):
    code = subprocess.run([sys.argv[1]], preexec_fn=lambda: None).returncode
    print(code)
"""


def test_programs_that_are_started_beside_a_grpc_server_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the health port beside Ray's start. With gRPC's fork handlers some three of a hundred were
    aborted between fork and exec.
    """
    program = shutil.which("true")
    assert program is not None
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
    command = [sys.executable, "-c", _FORKS, program]
    codes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert codes == ["0"] * 100
