"""Every RPC of both servers with messages that no client of ours sends."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import grpc
from google.protobuf.descriptor import MethodDescriptor

from lexico_proto.v1 import (
    admin_pb2,
    dictionaries_pb2,
    offload_pb2,
    operations_pb2,
    reload_pb2,
    versions_pb2,
)
from tests.support.channels import service_channel
from tests.support.services import Prompt, prompt, running_services

CALL_S: Final = 20.0
ALLOWED: Final = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNAVAILABLE,
    }
)
"""Answers and refusals. INTERNAL and UNKNOWN are defects."""


def methods() -> Iterator[tuple[str, MethodDescriptor]]:
    """Path and description of every RPC."""
    calls = (offload_pb2, reload_pb2, dictionaries_pb2)
    for file in (*calls, admin_pb2, versions_pb2, operations_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}", method


async def attack(calls: int, seed: int) -> dict[str, Any]:
    """Makes calls, and a sound upload after them: the servers must still be there.

    Args:
        calls: over all RPCs together.
        seed: of what is sent.
    """
    dice, statuses, findings = random.Random(seed), Counter[str](), []
    known = list(methods())
    async with running_services() as services:
        channels = {
            "Offload": service_channel(services.offload_address),
            "": service_channel(services.reload_address),
        }
        try:
            for _ in range(calls):
                path, method = dice.choice(known)
                channel = channels["Offload" if ".Offload/" in path else ""]
                sent = list(_messages(dice, method))
                status, details = await _called(channel, path, method, sent)
                statuses[f"{method.name} {status.name}"] += 1
                if status not in ALLOWED:
                    findings.append(f"{path} {status.name} {details}: {[m.hex() for m in sent]}")
        finally:
            for channel in channels.values():
                await channel.close(None)
        sound = prompt(pages=2, seed=seed)
        report = await services.offload.Put(iter(sound.upload()), timeout=CALL_S)
        if len(report.pages) != 2:
            findings.append("a sound upload is not taken any more")
    return {"calls": calls, "statuses": dict(sorted(statuses.items())), "findings": findings[:20]}


async def _called(
    channel: grpc.aio.Channel, path: str, method: MethodDescriptor, sent: list[bytes]
) -> tuple[grpc.StatusCode, str]:
    kind: Any = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
    }[method.client_streaming, method.server_streaming]
    call: Any = kind(path)(iter(sent) if method.client_streaming else sent[0], timeout=CALL_S)
    try:
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def _messages(dice: random.Random, method: MethodDescriptor) -> Iterator[bytes]:
    """Sound messages of a call, some of them changed, left out, doubled or made up."""
    sound = _sound(dice, method)
    for message in sound if method.client_streaming else sound[:1]:
        for _ in range(dice.choice((1, 1, 1, 1, 2)) if method.client_streaming else 1):
            yield _changed(dice, message)
        if method.client_streaming and dice.random() < 0.1:
            return


def _sound(dice: random.Random, method: MethodDescriptor) -> list[bytes]:
    made: Prompt = prompt(pages=dice.randint(1, 3), seed=dice.randrange(5))
    match method.name:
        case "Put":
            return [message.SerializeToString() for message in made.upload()]
        case "Match":
            return [reload_pb2.MatchRequest(page_keys=made.keys).SerializeToString()]
        case "Get":
            request = reload_pb2.GetRequest(page_keys=made.keys, groups=dice.randrange(70))
            return [request.SerializeToString()]
        case "Register":
            data = dice.randbytes(dice.randrange(2000))
            header = dictionaries_pb2.RegisterHeader(
                digest=dice.randbytes(32), artefact_bytes=dice.choice((len(data), 1 << 40))
            )
            return [
                dictionaries_pb2.RegisterRequest(header=header).SerializeToString(),
                dictionaries_pb2.RegisterRequest(data=data).SerializeToString(),
            ]
        case "Pin" | "Forget" | "Inspect":
            asked = admin_pb2.Prompt(namespace=made.spec.namespace, page_keys=made.keys)
            kind: Any = getattr(admin_pb2, f"{method.name}Request")
            request = kind(prompt=asked)
            if method.name == "Inspect":
                request.first_page = dice.choice((0, 1, (1 << 32) - 1))
                request.groups = dice.randrange(70)
            return [request.SerializeToString()]
        case "Fetch":
            return [dictionaries_pb2.FetchRequest(digest=dice.randbytes(32)).SerializeToString()]
        case "Publish":
            models = [dice.randbytes(32) for _ in range(dice.randint(1, 4))]
            digest = dice.choice((b"", dice.randbytes(32)))
            published = dictionaries_pb2.PublishRequest(digest=digest, models=models)
            published.shared = dice.random() < 0.5
            return [published.SerializeToString()]
        case "Find":
            models = [dice.randbytes(32) for _ in range(dice.randint(1, 4))]
            codec = dice.choice(("lexico", "lexico-residual"))
            return [dictionaries_pb2.FindRequest(models=models, codec=codec).SerializeToString()]
    return [b""]


def _changed(dice: random.Random, message: bytes) -> bytes:
    kind, data = dice.randrange(8), bytearray(message)
    if kind == 0:
        return dice.randbytes(dice.randrange(200))
    if kind == 1:
        return bytes(data[: dice.randrange(len(data) + 1)])
    if kind == 2 and data:
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
    if kind == 3:
        at = dice.randrange(len(data) + 1)
        data[at:at] = dice.randbytes(dice.randrange(20))
    return bytes(data)
