"""`lexico serve` as a child process, for the demo and the benchmarks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE_S = 600.0
"""Ends a hang: the service gives up by itself where a part of it does not start."""


class Service:
    """The whole service in its own processes, with free ports and embedded defaults."""

    def __init__(self, *options: str) -> None:
        """
        Args:
            options: further options of `lexico serve`.
        """
        self._scratch = tempfile.TemporaryDirectory(prefix="lexico-")
        file = Path(self._scratch.name) / "address.json"
        command = [sys.executable, "-m", "lexico_services", "serve", "--offload-port", "0"]
        command += ["--reload-port", "0", "--address-file", str(file), *options]
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        self.log = Path(self._scratch.name) / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=log, env=environment
            )
        deadline = time.monotonic() + PATIENCE_S
        while not file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                message = self.log.read_text()
                self.stop()
                raise SystemExit(f"the service did not start:\n{message}")
            time.sleep(0.05)
        self.addresses: dict[str, str] = json.loads(file.read_text())
        self.offload = self.addresses["offload"]
        self.reload = self.addresses["reload"]
        self.health = self.addresses.get("health", "")
        """Empty without `--health-address`."""

    def stop(self) -> int:
        """SIGTERM, and the exit code once everything has drained."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._scratch.cleanup()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
