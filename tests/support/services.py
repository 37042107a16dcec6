"""The services in this process: real gRPC on loopback, a memory store, encoders in threads."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import torch

from lexico_codec.checksum import Checksum
from lexico_codec.geometry import Geometry
from lexico_codec.keys import page_keys
from lexico_codec.spec import CacheSpec, make_spec
from lexico_codec.tensors import bytes_of
from lexico_codec.wire import spec_to_wire
from lexico_proto.errors import REASON_METADATA_KEY, LexicoError, from_wire
from lexico_proto.metrics import Family, Metrics
from lexico_proto.v1 import dictionaries_pb2_grpc, offload_pb2, offload_pb2_grpc, reload_pb2_grpc
from lexico_services.auth import Tenants
from lexico_services.config import ListenConfig, OffloadConfig, ReloadConfig
from lexico_services.door_config import JwtConfig, TlsConfig
from lexico_services.offload.encoder_pools import LocalEncoders
from lexico_services.offload.ingress import EncoderPool, Ingress
from lexico_services.offload.servicer import SERVICES, OffloadServicer
from lexico_services.policies import Policies
from lexico_services.reload.server import ReloadServer
from lexico_services.server import GrpcServer
from lexico_services.telemetry.gauges import watch_ingress
from lexico_store import MemoryStore, PageStore
from lexico_worker.page_encoder import PageEncoder
from tests.support.channels import service_channel
from tests.support.waiting import PATIENCE_S

Messages = list[offload_pb2.PutRequest]

TINY = Geometry(layers=3, kv_heads=2, head_dim=8, dtype="float32")


@dataclass
class Services:
    """Addresses, stubs and insides of running services."""

    offload: offload_pb2_grpc.OffloadStub
    reload: reload_pb2_grpc.ReloadStub
    dictionaries: dictionaries_pb2_grpc.DictionariesStub
    store: PageStore
    ingress: Ingress
    offload_address: str
    reload_address: str
    metrics: Metrics
    """Of both servers."""

    def counts(self, family: Family) -> dict[tuple[str, ...], int | float]:
        """What they counted of a family, zeros left out."""
        counts = self.metrics.snapshot().get(family, {})
        return {values: number for values, number in counts.items() if number}


@asynccontextmanager
async def running_services(
    store: PageStore | None = None,
    *,
    token_file: Path | None = None,
    tls: TlsConfig | None = None,
    jwt: JwtConfig | None = None,
    offload: OffloadConfig | None = None,
    reload: ReloadConfig | None = None,
    encoders: EncoderPool | None = None,
    policy_file: Path | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
) -> AsyncIterator[Services]:
    """Both servers on free loopback ports, for the block. A Match has all the time it needs."""
    store, metrics = store or MemoryStore(), Metrics()
    listen = ListenConfig(
        token_file=token_file,
        policy_file=policy_file,
        drain_s=2.0,
        tls=tls or TlsConfig(),
        jwt=jwt or JwtConfig(),
    )
    policies = Policies(policy_file)
    pages = PageEncoder(store, page_ttl_s=3600, lease_ttl_s=PATIENCE_S, metrics=metrics)
    local = LocalEncoders(pages, threads=2)
    bounds_up = offload or OffloadConfig(idle_s=PATIENCE_S, slice_wait_s=PATIENCE_S)
    ingress = Ingress(encoders or local, bounds_up, metrics, policies)
    watch_ingress(metrics, ingress)
    servicer = OffloadServicer(ingress, Tenants.of(listen, metrics), bounds_up, metrics, policies)
    front = GrpcServer(
        listen,
        servicer.add_to,
        SERVICES,
        interceptors=interceptors,
    )
    bounds = replace(reload or ReloadConfig(), match_timeout_s=PATIENCE_S)
    back = ReloadServer(store, listen, bounds, interceptors=interceptors, metrics=metrics)
    await front.start()
    await back.start()
    offload_address, reload_address = f"127.0.0.1:{front.port}", f"127.0.0.1:{back.port}"
    try:
        async with (
            service_channel(offload_address) as up,
            service_channel(reload_address) as down,
        ):
            yield Services(
                offload_pb2_grpc.OffloadStub(up),
                reload_pb2_grpc.ReloadStub(down),
                dictionaries_pb2_grpc.DictionariesStub(down),
                store,
                ingress,
                offload_address,
                reload_address,
                metrics,
            )
    finally:
        await front.drain()
        await ingress.close()
        await back.drain()
        local.close()


@dataclass(frozen=True)
class Prompt:
    """A sequence with a random cache of two pages."""

    spec: CacheSpec
    token_ids: list[int]
    pages: list[list[torch.Tensor]]
    """Per page, its layer groups."""

    @property
    def keys(self) -> list[bytes]:
        """Keys of its pages."""
        return page_keys(self.spec, self.token_ids)

    def header(self, **changes: Any) -> offload_pb2.PutRequest:
        """The opening message of a Put of every page, with some fields changed."""
        fields: dict[str, Any] = {
            "spec": spec_to_wire(self.spec),
            "token_ids": self.token_ids,
            "pages": range(len(self.pages)),
            "page_keys": self.keys,
        }
        return offload_pb2.PutRequest(header=offload_pb2.PutHeader(**{**fields, **changes}))

    def data(self, page: int = 0) -> bytes:
        """The bytes of one page."""
        return b"".join(bytes_of(group) for group in self.pages[page])

    def page(self, page: int, index: int | None = None, size: int = 1 << 20) -> Messages:
        """Data and end of one page, under another index if given."""
        data = self.data(page)
        return [*data_messages(data, size), page_end(page if index is None else index, data)]

    def body(self, size: int = 1 << 20) -> Messages:
        """Data and end of every page."""
        return [m for page in range(len(self.pages)) for m in self.page(page, size=size)]

    def upload(self) -> Messages:
        """A whole Put."""
        return [self.header(), *self.body()]


def prompt(*, seed: int = 0, pages: int = 2, page_tokens: int = 5, **spec: object) -> Prompt:
    """A prompt of random tokens with a random cache.

    Args:
        seed: decides tokens and cache.
        pages: full pages of it.
        page_tokens: tokens a page.
        spec: fields of `make_spec` that differ from a tiny raw one.
    """
    fields: dict[str, object] = {"weights": b"w" * 32, "geometry": TINY, "codec": "raw"}
    made = make_spec(**{**fields, "page_tokens": page_tokens, **spec})  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 1000, (pages * page_tokens,), generator=generator).tolist()
    cache = [
        [
            torch.randn(made.group_shape(g), generator=generator).to(made.geometry.torch_dtype)
            for g in range(made.groups)
        ]
        for _ in range(pages)
    ]
    return Prompt(made, tokens, cache)


def page_end(page: int, data: bytes) -> offload_pb2.PutRequest:
    """The message that ends a page of these bytes."""
    checksum = Checksum()
    checksum.add(data)
    end = offload_pb2.PageEnd(page=page, checksum=checksum.value())
    return offload_pb2.PutRequest(page_end=end)


def data_messages(data: bytes, size: int = 1 << 20) -> list[offload_pb2.PutRequest]:
    """Data messages of at most `size` bytes."""
    return [offload_pb2.PutRequest(data=data[at : at + size]) for at in range(0, len(data), size)]


async def stream(
    messages: Iterable[offload_pb2.PutRequest],
) -> AsyncIterator[offload_pb2.PutRequest]:
    """Messages as a request stream of the generated stub."""
    for message in messages:
        yield message


async def serialised(
    messages: Iterable[offload_pb2.PutRequest],
) -> AsyncGenerator[bytes, None]:
    """Messages as a client's transport takes them, written by protobuf."""
    for message in messages:
        yield message.SerializeToString()


def error_of(error: grpc.aio.AioRpcError) -> LexicoError:
    """The error of our tree that a failed call carries."""
    trailing: Any = error.trailing_metadata() or ()
    reason = next((str(v) for k, v in trailing if k == REASON_METADATA_KEY), None)
    return from_wire(error.code().value[0], reason, error.details() or "")
