"""`lexico` in this process: what starts no process costs a test no seconds."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest

from lexico_services.cli import main
from tests.support.services import Services
from tests.support.waiting import PATIENCE_S


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Lexico:
    """Commands to running services, from a thread: they have an event loop of their own."""

    services: Services
    capsys: pytest.CaptureFixture[str]

    async def __call__(self, *words: object, servers: bool = True) -> Ended:
        """
        Args:
            words: of the command line.
            servers: whether the services' addresses are added, and all the time it needs.
        """
        line = [str(word) for word in words]
        if servers:
            line += ["--reload", self.services.reload_address, "--timeout", str(PATIENCE_S)]
            if line[0] in ("status", "put", "version"):
                line += ["--offload", self.services.offload_address]
        self.capsys.readouterr()
        code = await asyncio.to_thread(main, line)
        said = self.capsys.readouterr()
        return Ended(code, said.out, said.err)
