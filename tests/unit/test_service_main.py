"""What the `lexico` command sets before it imports anything else."""

from __future__ import annotations

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
