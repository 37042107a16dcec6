"""A node, both servers and Redis, with a network between each two, for faults to break.

What is stored follows from `KEPT`, what a trial offers from `NEW`: the oracle of every answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import torch

from lexico_client import AsyncClient, Timeouts
from lexico_codec.keys import page_keys
from lexico_codec.pieces import Piece
from lexico_proto import errors
from lexico_proto.v1 import admin_pb2, admin_pb2_grpc
from lexico_services.config import OffloadConfig
from lexico_services.offload.encoder_pools import LocalEncoders
from lexico_store import StoreSettings, keys, open_store
from lexico_store.scopes import tenant_scope
from lexico_worker.page_encoder import PageDone, PageEncoder, PageJob
from tests.support.client_fixtures import PATIENT, Landing, first_pages, random_cache, small_spec
from tests.support.client_fixtures import views_of as views
from tests.support.leases import held_leases
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer
from tests.support.services import Services, error_of, running_services
from tests.support.topologies import client_of
from tests.support.waiting import PATIENCE_S, until

SPEC: Final = small_spec()
PAGES: Final = 4
SHORT_S: Final = 1.0
"""The deadline of a call that must reach it."""
QUICK: Final = StoreSettings(timeout_s=0.5, connect_timeout_s=0.5)
NODE, READER = "token-of-the-node-0123", "token-of-a-reader-0123"
USER: Final = "pages"


@dataclass(frozen=True)
class Known:
    """A prompt whose cache is known."""

    first: int
    """Its first token id."""

    @property
    def tokens(self) -> list[int]:
        return list(range(self.first, self.first + PAGES * SPEC.page_tokens + 3))

    @property
    def cache(self) -> torch.Tensor:
        return random_cache(SPEC, PAGES, seed=self.first)

    @property
    def keys(self) -> list[bytes]:
        return page_keys(SPEC, self.tokens)


KEPT, NEW = Known(100), Known(9000)


class Encoders:
    """Threads, until they are told to be something else."""

    def __init__(self, threads: LocalEncoders) -> None:
        self.threads = threads
        self.lost = False
        self.silent = False

    async def running(self) -> int | None:
        return None

    async def place(self, page: list[Piece]) -> Any:
        return await self.threads.place(page)

    async def encode(self, job: PageJob, placed: Any) -> PageDone:
        if self.lost:
            raise errors.EncoderLost("two encoders died with the page")
        if self.silent:
            await asyncio.Event().wait()
        return await self.threads.encode(job, placed)


@dataclass(frozen=True)
class Answer:
    """What a call came to."""

    error: type[BaseException] | None
    """What it raised, or named as the reason of a miss."""
    pages: int = 0
    """That it gave, stored, found or forgot."""


@dataclass
class Rig:
    """All of it, while it runs."""

    redis: RedisServer
    store_network: Proxy
    """Between the servers and Redis."""
    reload_network: Proxy
    offload_network: Proxy
    services: Services
    encoders: Encoders
    folder: Path
    patient: AsyncClient
    """Past the networks of the nodes, with all the time that it needs."""
    another_redis: Callable[[], RedisServer]
    """Starts one in place of one that is gone."""
    seconds: float = PATIENCE_S
    """The deadline of the calls of `node`."""
    node_options: dict[str, Any] = field(default_factory=lambda: {"token": NODE})
    cancelled: bool = False
    """Calls are cancelled once they are half-way."""
    resting: AsyncClient | None = None
    """In place of a new client for each call."""

    @asynccontextmanager
    async def node(self) -> AsyncIterator[AsyncClient]:
        """The client whose calls are tried."""
        if self.resting is not None:
            yield self.resting
            return
        seconds = self.seconds
        timeouts = Timeouts(seconds, seconds, seconds, seconds, seconds)
        async with AsyncClient(
            reload=f"127.0.0.1:{self.reload_network.port}",
            offload=f"127.0.0.1:{self.offload_network.port}",
            dictionaries_dir=self.folder / "sets",
            timeouts=timeouts,
            **self.node_options,
        ) as client:
            yield client

    async def fresh(self) -> None:
        """The store holds `KEPT` and nothing else."""
        with client_of(self.redis) as raw:
            raw.flushall()

        async def stored() -> bool:
            try:
                await self.patient.offload(SPEC, KEPT.tokens, views(SPEC, KEPT.cache))
            except errors.Unavailable:  # it is not over what came before
                return False
            return True

        while not await stored():
            await asyncio.sleep(0)
        assert await self.given(KEPT) == PAGES

    async def given(self, known: Known) -> int:
        """Pages that a load gives once the store was found again; each is what was offered."""
        while True:
            landing = Landing(SPEC)
            loaded = await self.patient.load(SPEC, known.tokens, landing)
            assert_right(landing, known, loaded.pages)
            if not isinstance(loaded.reason, errors.StoreUnavailable | errors.CircuitOpen):
                return loaded.pages

    async def call(self, operation: str) -> Answer:
        """One call of the node, to its end."""
        halfway = asyncio.Event()
        async with asyncio.timeout(PATIENCE_S), self.node() as client:
            work = asyncio.create_task(getattr(self, f"_{operation}")(client, halfway))
            if self.cancelled:
                await halfway.wait()
                work.cancel()
            try:
                answer: Answer = await work
            except errors.LexicoError as error:
                return Answer(type(error))
            except grpc.aio.AioRpcError as error:
                return Answer(type(error_of(error)))
            except asyncio.CancelledError:
                return Answer(asyncio.CancelledError)
        return answer

    def held(self) -> dict[str, int]:
        """What calls have taken and not given back."""
        with client_of(self.redis) as raw:
            leases = held_leases(raw)
        return {"leases": leases, "bytes in flight": self.services.ingress.budget.used}

    async def all_given_back(self) -> None:
        """Waits for it."""
        await until(lambda: not any(self.held().values()), "all given back", self.held)

    async def _match(self, client: AsyncClient, halfway: asyncio.Event) -> Answer:
        halfway.set()
        found = await client.match(SPEC, KEPT.tokens)
        return Answer(None, found.pages)

    async def _load(self, client: AsyncClient, halfway: asyncio.Event) -> Answer:
        landing, loop = Landing(SPEC), asyncio.get_running_loop()

        def target(pages: int) -> Any:
            view = landing(pages)
            loop.call_soon_threadsafe(halfway.set)
            return view

        loaded = await client.load(SPEC, KEPT.tokens, target)
        assert_right(landing, KEPT, loaded.pages)
        return Answer(None if loaded.reason is None else type(loaded.reason), loaded.pages)

    async def _offload(self, client: AsyncClient, halfway: asyncio.Event) -> Answer:
        source, loop = views(SPEC, NEW.cache), asyncio.get_running_loop()

        def read(page: int, group: int) -> torch.Tensor:
            if page:
                loop.call_soon_threadsafe(halfway.set)
            return source(page, group)

        report = await client.offload(SPEC, NEW.tokens, read)
        return Answer(None, len(report.pages))

    async def _forget(self, client: AsyncClient, halfway: asyncio.Event) -> Answer:
        token = (("authorization", f"Bearer {self.node_options['token']}"),)
        asked = admin_pb2.ForgetRequest(
            prompt=admin_pb2.Prompt(namespace=SPEC.namespace, page_keys=KEPT.keys)
        )
        halfway.set()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.reload_network.port}") as channel:
            admin = admin_pb2_grpc.AdminStub(channel)
            done = await admin.Forget(asked, metadata=token, timeout=self.seconds)
        return Answer(None, done.pages)

    def frames(self, page: int) -> tuple[str, dict[bytes, bytes]]:
        """The name of a page of `KEPT` in Redis, and its frames as they lie there."""
        name = keys.page(tenant_scope("node"), KEPT.keys[page])
        with client_of(self.redis) as raw:
            found = raw.hgetall(name)
        return name, {field: frame for field, frame in found.items() if field.startswith(b"g")}


def assert_right(landing: Landing, known: Known, pages: int) -> None:
    """The leading pages that a load says it gave are what was offered."""
    assert 0 <= pages <= PAGES
    if pages:
        given = first_pages(landing.cache, SPEC, pages)
        assert torch.equal(given, first_pages(known.cache, SPEC, pages)), "wrong keys or values"


@asynccontextmanager
async def running_rig(another_redis: Callable[[], RedisServer], folder: Path) -> AsyncIterator[Rig]:
    """A rig for the block.

    Args:
        another_redis: gives a Redis that has `USER`.
        folder: for its files.
    """
    redis = another_redis()
    tokens, policies = folder / "tokens", folder / "policies.toml"
    tokens.write_text(f"node:{NODE}:offload,reload,admin\nnode:{READER}:reload\n")
    policies.write_text("[default]\npage_ttl_s = 3600\n")
    with Proxy(redis.port) as store_network:
        url = f"redis://{USER}:secret@127.0.0.1:{store_network.port}"
        with open_store(url, QUICK) as store:
            worker = PageEncoder(store, page_ttl_s=3600, lease_ttl_s=PATIENCE_S)
            encoders = Encoders(LocalEncoders(worker, threads=2))
            async with running_services(
                store,
                token_file=tokens,
                policy_file=policies,
                offload=OffloadConfig(idle_s=PATIENCE_S),
                encoders=encoders,
            ) as services:
                patient = AsyncClient(
                    reload=services.reload_address,
                    offload=services.offload_address,
                    token=NODE,
                    dictionaries_dir=folder / "sets",
                    timeouts=PATIENT,
                )
                with (
                    Proxy(_port(services.reload_address)) as down,
                    Proxy(_port(services.offload_address)) as up,
                ):
                    async with patient:
                        yield Rig(
                            redis=redis,
                            store_network=store_network,
                            reload_network=down,
                            offload_network=up,
                            services=services,
                            encoders=encoders,
                            folder=folder,
                            patient=patient,
                            another_redis=another_redis,
                        )
            encoders.threads.close()


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
