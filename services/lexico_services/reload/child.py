"""A reload server that `lexico serve` keeps as a child process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from lexico_proto.errors import ConfigurationError, Unavailable
from lexico_services.ending import Ending
from lexico_services.settings import Settings
from lexico_services.settings.schema import SETTINGS

STORE_S: Final = 1.0
"""Seconds of a shutdown that the store is left, which ends after this server."""


class ReloadChild:
    """A reload server as a child process, ended with this one."""

    def __init__(self, settings: Settings) -> None:
        """
        Args:
            settings: of the child. It gets them by a file that only this user reads: they may hold
                a password, and nothing has to be spelt as options again.
        """
        self._scratch = tempfile.TemporaryDirectory(prefix="lexico-reload-")
        folder = Path(self._scratch.name)
        self._file = folder / "address.json"
        config = folder / "lexico.toml"
        config.touch(0o600)
        config.write_text(settings.as_toml(secrets=True), encoding="utf-8")
        command = [sys.executable, "-m", "lexico_services", "reload-server"]
        command += ["--config", str(config), "--address-file", str(self._file)]
        command += ["--parent", str(os.getpid())]
        self._addresses: dict[str, str] = {}
        ours = {setting.variable for setting in SETTINGS.values()}
        environment = {name: text for name, text in os.environ.items() if name not in ours}
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)

    def address(self, stopped: threading.Event, within_s: float) -> str | None:
        """`host:port`, once the child listens; None if `stopped` was set before.

        Raises:
            ConfigurationError: it ended instead, or took over `within_s` seconds.
        """
        deadline = time.monotonic() + within_s
        while not self._file.exists():
            if stopped.wait(0.02):
                return None
            if self._process.poll() is not None:
                raise ConfigurationError("the reload server did not start; its error is above")
            if time.monotonic() > deadline:
                raise ConfigurationError(f"the reload server took over {within_s:g} s")
        self._addresses = json.loads(self._file.read_text())
        return self._addresses["reload"]

    @property
    def metrics(self) -> dict[str, str]:
        """Where its metrics are, if they are shown, by the name of the address."""
        return {name: found for name, found in self._addresses.items() if name != "reload"}

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def check(self) -> None:
        """Raises Unavailable where the process is gone."""
        if self._process.poll() is not None:
            raise Unavailable("the reload server ended by itself; its error is above")

    def read_again(self) -> None:
        """Has it read tokens and certificates again."""
        self._process.send_signal(signal.SIGHUP)

    def drain(self) -> None:
        """Has it refuse new calls, let running ones end, and end. Returns at once. Idempotent."""
        self._process.terminate()

    def stop(self, ending: Ending) -> None:
        """Drains it, and ends it by SIGKILL where it takes too long. Idempotent."""
        self.drain()
        try:
            self._process.wait(ending.left(reserve_s=STORE_S))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._scratch.cleanup()
