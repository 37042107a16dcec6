"""An ingress that drains because a file was touched, as a pod of Ray has it before its end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lexico_client import GrpcTransport
from lexico_proto import errors
from lexico_proto.v1 import versions_pb2
from lexico_services.config import ListenConfig, OffloadConfig
from lexico_services.offload.deployment import IngressConfig, IngressReplica
from lexico_worker.page_encoder import Outcome, PageDone
from tests.support.health import NOT_SERVING, SERVING, health_of
from tests.support.servers import free_port
from tests.support.services import prompt, serialised
from tests.support.waiting import PATIENCE_S, lingering, until


class Encoders:
    """A deployment's handle, whose pages are stored once it is told."""

    def _init(self, **options: Any) -> None:
        """Options of a handle; see `near_first`."""

    def __init__(self) -> None:
        self.encode = self
        self.called = 0
        self.go_on = asyncio.Event()

    async def remote(self, *_: Any) -> PageDone:
        self.called += 1
        await self.go_on.wait()
        return PageDone(Outcome.STORED)


class Replica(IngressReplica):
    """One that the test drains, and not Serve."""

    def __del__(self) -> None:  # type: ignore[override]
        """Serve awaits the one of the class; nobody would here."""


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory without Ray."""
    monkeypatch.setattr("ray.put", list)


@pytest.mark.usefixtures("without_ray")
async def test_a_touched_file_drains_the_ingress(tmp_path: Path) -> None:
    file, health = tmp_path / "drain", f"127.0.0.1:{free_port()}"
    file.touch()  # before it began: for another one
    encoders = Encoders()
    ingress = Replica(
        encoders,
        IngressConfig(
            ListenConfig(drain_s=PATIENCE_S), OffloadConfig(drain_file=file), health_address=health
        ),
    )
    address = f"127.0.0.1:{await ingress.port()}"
    transport = GrpcTransport(address, address)
    putting = asyncio.create_task(transport.put(serialised(prompt().upload()), PATIENCE_S))
    await until(lambda: encoders.called == 2, "both pages with encoders")
    await lingering()
    assert await asyncio.to_thread(health_of, health, "ready") == SERVING

    file.write_text("now")

    async def refused() -> bool:
        asked = versions_pb2.DescribeRequest()
        try:
            await transport.describe("offload", asked, PATIENCE_S)
        except errors.Unavailable:
            return True
        return False

    while not await refused():
        pass
    assert await asyncio.to_thread(health_of, health, "ready") == NOT_SERVING
    await ingress.check_health()  # or Serve would start another one in its place
    assert not putting.done()
    encoders.go_on.set()
    assert len((await putting).pages) == 2
    await transport.close()
    await ingress.drain()
