"""`lexico status`: what each server is doing. Rates are the difference of two answers."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lexico_client._endpoint import Endpoint
from lexico_client._settings import check_seconds
from lexico_client.commands.advice import advised
from lexico_client.commands.connection import Callers, Connection
from lexico_client.commands.exits import Exit, exit_code
from lexico_client.commands.output import Answer, Screen
from lexico_client.commands.status_tables import status_parts
from lexico_proto.errors import LexicoError
from lexico_proto.v1 import operations_pb2 as pb
from lexico_proto.v1.operations_pb2_grpc import OperationsStub

_RATED = {
    pb.TenantStatus.DESCRIPTOR: (
        *("received_bytes", "stored_bytes", "sent_bytes"),
        *("matches", "match_tokens", "hit_tokens"),
    ),
    pb.IngressStatus.DESCRIPTOR: (
        *("pages_stored", "pages_present", "pages_in_progress", "pages_failed", "pages_cancelled"),
        *("received_bytes", "stored_bytes", "encoder_retries"),
    ),
    pb.ReloadStatus.DESCRIPTOR: (
        *("matches_all", "matches_some", "matches_none", "match_tokens", "hit_tokens"),
        *("sent_pages", "sent_bytes", "misses_absent", "misses_damaged", "misses_newer"),
        *("sets_found", "sets_missing"),
    ),
    pb.StoreNumbers.DESCRIPTOR: ("evictions", "expiries"),
}
"""Counters of each message: what has a rate."""


@dataclass(frozen=True)
class Said:
    """What one server said, or why it did not."""

    endpoint: Endpoint
    response: pb.StatusResponse | None = None
    error: LexicoError | None = None

    @property
    def since(self) -> float:
        """Seconds since it began; rates divide by its own clock."""
        return 0.0 if self.response is None else self.response.running_s


def status(options: argparse.Namespace, screen: Screen) -> Answer:
    """Two looks at every server, `--interval` apart; with `--watch` one after another until
    Ctrl-C.

    Raises:
        ConfigurationError: an option that cannot be used.
        LexicoError: no server answered; the first one's error.
    """
    connection = Connection.of(options)
    servers = (*connection.reload, *connection.offload)
    with asyncio.Runner() as runner:
        return runner.run(_looked(options, screen, servers, connection.timeout))


async def _looked(
    options: argparse.Namespace, screen: Screen, servers: Sequence[Endpoint], timeout: float
) -> Answer:
    one_look = options.watch is None and options.interval == 0
    every = 0.0
    if not one_look:
        watching = options.watch is not None
        given = options.watch if watching else options.interval
        every = check_seconds("--watch" if watching else "--interval", given)
    async with Callers(timeout) as callers:
        before = await _ask_all(callers, servers)
        if all(said.error is not None for said in before) and before[0].error is not None:
            raise before[0].error
        if one_look:
            return _answer([None] * len(before), before)
        await asyncio.sleep(every)
        now = await _ask_all(callers, servers)
        if options.watch is None:
            return _answer(before, now)
        with screen.redrawn():
            while True:
                screen.show(_answer(before, now))
                before = now
                await asyncio.sleep(every)
                now = await _ask_all(callers, servers)


async def _ask_all(callers: Callers, servers: Sequence[Endpoint]) -> list[Said]:
    return list(await asyncio.gather(*(_ask(callers, server) for server in servers)))


async def _ask(callers: Callers, server: Endpoint) -> Said:
    try:
        answer = await callers.ask(server, OperationsStub, "Status", pb.StatusRequest())
    except LexicoError as error:
        return Said(server, error=error)
    return Said(server, answer)


def _answer(before: Sequence[Said | None], now: Sequence[Said]) -> Answer:
    servers = [_server(then, said) for then, said in zip(before, now, strict=True)]
    document = {"at": time.time(), "servers": servers}
    errors = [said.error for said in now if said.error is not None]
    code = exit_code(errors[0]) if errors else Exit.DONE
    return Answer(document, status_parts(servers), code)


def _server(before: Said | None, now: Said) -> dict[str, Any]:
    response, error = now.response, now.error
    found: dict[str, Any] = {
        "address": now.endpoint.address,
        "reachable": response is not None,
        "error": None if error is None else advised(error),
        "reason": None if error is None else error.reason,
        "release": None,
        "part": None,
        "running_s": None,
        "counting": None,
        "over_s": None,
        "own": None,
        "ingress": None,
        "reload": None,
        "tenants": None,
    }
    if response is None:
        return found
    then, over_s = None, None
    if before is not None and before.response is not None and now.since > before.since:
        then, over_s = before.response, now.since - before.since
    found |= {
        "release": response.release or None,
        "part": response.part,
        "running_s": response.running_s,
        "counting": response.counting,
        "over_s": over_s,
    }
    for name in ("own", "ingress", "reload"):
        if response.HasField(name):
            past = getattr(then, name) if then is not None and then.HasField(name) else None
            found[name] = _message(getattr(response, name), past, over_s)
    if response.HasField("ingress") or response.HasField("reload"):
        earlier = {} if then is None else {each.tenant: each for each in then.tenants}
        new = pb.TenantStatus() if then is not None else None
        found["tenants"] = [
            _message(each, earlier.get(each.tenant, new), over_s) for each in response.tenants
        ]
    return found


def _message(message: Any, past: Any, over_s: float | None) -> dict[str, Any]:
    """The fields of a message, and the rates of those that count."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.has_presence and not message.HasField(field.name):
            found[field.name] = None
        elif field.message_type is not None:
            known = past is not None and past.HasField(field.name)
            earlier = getattr(past, field.name) if known else None
            found[field.name] = _message(value, earlier, over_s)
        else:
            found[field.name] = value
    rated = _RATED.get(message.DESCRIPTOR, ())
    if rated:
        found["per_s"] = (
            None if past is None or not over_s else _rates(message, past, over_s, rated)
        )
    return found


def _rates(message: Any, past: Any, over_s: float, names: Sequence[str]) -> dict[str, float] | None:
    """Of each counter; None where one went back: whoever counts it began anew."""
    grown = {name: getattr(message, name) - getattr(past, name) for name in names}
    if min(grown.values()) < 0:
        return None
    return {name: value / over_s for name, value in grown.items()}
