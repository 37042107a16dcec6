"""`lexico version`: what this installation reads and writes, and with `--servers` they too."""

from __future__ import annotations

import argparse
import asyncio
import platform
from typing import Any

from lexico_client._endpoint import Endpoint
from lexico_client.commands.connection import Callers, Connection
from lexico_client.commands.output import Answer, Screen, Table
from lexico_codec.formats import Formats, formats_from_wire, formats_to_wire, own_formats
from lexico_proto.v1 import versions_pb2 as pb
from lexico_proto.v1.versions_pb2_grpc import VersionsStub


def version(options: argparse.Namespace, screen: Screen) -> Answer:
    """Of this installation; of the servers too, if that is asked for.

    Raises:
        ConfigurationError: an option that cannot be used.
        LexicoError: a server could not answer.
    """
    own = own_formats()
    found: dict[str, tuple[str, Formats]] = {"here": ("", own)}
    if options.servers:
        connection = Connection.of(options)
        named = {"reload": connection.reload[0], "offload": connection.offload[0]}
        answers = asyncio.run(_asked(named, connection.timeout))
        found |= {name: (named[name].address, answers[name]) for name in named}
    document: dict[str, Any] = {
        name: {"address": address or None, **_as_json(formats)}
        for name, (address, formats) in found.items()
    }
    document["python"] = platform.python_version()
    rows = tuple(
        (
            f"{name} {address}".rstrip(),
            formats.release or "not installed",
            ", ".join(map(str, formats.frames)),
            ", ".join(map(str, formats.sets)),
            ", ".join(formats.codecs),
            ", ".join(formats.dtypes),
        )
        for name, (address, formats) in found.items()
    )
    return Answer(
        document, (Table("", ("", "release", "frames", "sets", "codecs", "dtypes"), rows),)
    )


async def _asked(named: dict[str, Endpoint], timeout: float) -> dict[str, Formats]:
    request = pb.DescribeRequest(caller=formats_to_wire(own_formats()))
    async with Callers(timeout) as callers:
        return {
            name: formats_from_wire(
                (await callers.ask(endpoint, VersionsStub, "Describe", request)).server
            )
            for name, endpoint in named.items()
        }


def _as_json(formats: Formats) -> dict[str, Any]:
    return {
        "release": formats.release or None,
        "frames": list(formats.frames),
        "sets": list(formats.sets),
        "codecs": list(formats.codecs),
        "dtypes": list(formats.dtypes),
    }
