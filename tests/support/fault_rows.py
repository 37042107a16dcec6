"""The rows of the fault matrix: what breaks, and what each kind of call may come to meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from lexico_client import Tls
from lexico_codec.frame import HEADER_BYTES
from lexico_proto.errors import (
    Busy,
    ConfigurationError,
    DamagedFrame,
    DeadlineExpired,
    EncoderLost,
    NewerFrame,
    PermissionDenied,
    QuotaExceeded,
    StoreUnavailable,
    Unauthenticated,
    Unavailable,
)
from lexico_proto.watched import look_again
from lexico_store.redis_rights import RULE
from tests.support.authorities import Authority
from tests.support.client_fixtures import flipped
from tests.support.fault_rig import KEPT, NODE, PAGES, READER, SHORT_S, SPEC, USER, Rig
from tests.support.newer_frames import of_codec, of_version
from tests.support.servers import stopped
from tests.support.topologies import client_of

Errors = tuple[type[BaseException] | None, ...]
Break = Callable[[Rig], AbstractAsyncContextManager[None]]

OPERATIONS: Final = ("match", "load", "offload", "forget")
WELL: Final[Errors] = (None,)
AWAY: Final[Errors] = (StoreUnavailable,)
SILENT: Final[Errors] = (DeadlineExpired, StoreUnavailable)
CANCELLED: Final[Errors] = (asyncio.CancelledError,)


@dataclass(frozen=True)
class Row:
    """A fault, and the errors with which each operation may end; None is an end without."""

    broken: Break
    match: Errors
    load: Errors
    offload: Errors
    forget: Errors
    pages: int = PAGES
    """That a load gives whose error is none, or one of a page's."""
    deadline: bool = False
    """Calls that may not succeed have a short one."""
    loses: bool = False
    """What was stored is gone afterwards."""

    def allowed(self, operation: str) -> Errors:
        """The errors of an operation."""
        errors: Errors = getattr(self, operation)
        return errors


def every(broken: Break, errors: Errors, *, deadline: bool = False, loses: bool = False) -> Row:
    """A fault that comes to the same for each operation."""
    return Row(broken, errors, errors, errors, errors, deadline=deadline, loses=loses)


@asynccontextmanager
async def _redis_killed(rig: Rig) -> AsyncIterator[None]:
    """SIGKILL, as the kernel's out-of-memory killer has it; a new one is there afterwards."""
    rig.redis.process.kill()
    rig.redis.process.wait()
    yield
    rig.redis = rig.another_redis()
    rig.store_network.server_port = rig.redis.port


@asynccontextmanager
async def _redis_stopped(rig: Rig) -> AsyncIterator[None]:
    with stopped(rig.redis.pid):
        yield


@asynccontextmanager
async def _forgotten(rig: Rig) -> AsyncIterator[None]:
    rig.store_network.forget()
    yield


@asynccontextmanager
async def _black_hole(rig: Rig) -> AsyncIterator[None]:
    rig.store_network.swallows = True
    yield
    rig.store_network.swallows = False
    rig.store_network.cut()


@asynccontextmanager
async def _refused(rig: Rig) -> AsyncIterator[None]:
    rig.store_network.refuse()
    yield
    rig.store_network.accept()


@asynccontextmanager
async def _reset(rig: Rig) -> AsyncIterator[None]:
    rig.store_network.cut()
    yield


@asynccontextmanager
async def _slow(rig: Rig) -> AsyncIterator[None]:
    rig.store_network.delay_s = 0.1
    yield
    rig.store_network.delay_s = 0.0


def _told(change: Sequence[Sequence[Any]], back: Sequence[Sequence[Any]]) -> Break:
    """Commands to Redis, and those that undo them."""

    @asynccontextmanager
    async def broken(rig: Rig) -> AsyncIterator[None]:
        for commands, over in ((change, False), (back, True)):
            if over:
                yield
            with client_of(rig.redis) as raw:
                for command in commands:
                    raw.execute_command(*command)

    return broken


_RIGHTS: Final = ("ACL", "SETUSER", USER, "reset", "on", ">secret", *RULE.split())
_FULL: Final = _told(
    [("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", 1)],
    [("CONFIG", "SET", "maxmemory", 0)],
)
_REVOKED: Final = _told([("ACL", "SETUSER", USER, "resetkeys")], [_RIGHTS])
_UNWRITABLE: Final = _told([("ACL", "SETUSER", USER, "-@write")], [_RIGHTS])
_ANOTHER_PASSWORD: Final = _told(
    [
        ("ACL", "SETUSER", USER, "resetpass", ">another"),
        ("CLIENT", "KILL", "USER", USER),
    ],
    [_RIGHTS],
)
_REPLICA: Final = _told([("REPLICAOF", "127.0.0.1", 1)], [("REPLICAOF", "NO", "ONE")])
_STALE: Final = _told(
    [("CONFIG", "SET", "replica-serve-stale-data", "no"), ("REPLICAOF", "127.0.0.1", 1)],
    [("REPLICAOF", "NO", "ONE"), ("CONFIG", "SET", "replica-serve-stale-data", "yes")],
)


def _rewritten(change: Callable[[bytes], bytes | None]) -> Break:
    """The last frame of the second page is another one, or gone."""

    @asynccontextmanager
    async def broken(rig: Rig) -> AsyncIterator[None]:
        name, frames = rig.frames(1)
        field = max(frames)
        made = change(frames[field])
        with client_of(rig.redis) as raw:
            if made is None:
                raw.hdel(name, field)
            else:
                raw.hset(name, field, made)
        yield

    return broken


@asynccontextmanager
async def _misplaced(rig: Rig) -> AsyncIterator[None]:
    """The second page's frames are those of the third."""
    name, _ = rig.frames(1)
    with client_of(rig.redis) as raw:
        raw.hset(name, mapping=rig.frames(2)[1])
    yield


@asynccontextmanager
async def _servers_gone(rig: Rig) -> AsyncIterator[None]:
    """As a server that is killed leaves it: connections reset, and nobody listens."""
    for network in (rig.reload_network, rig.offload_network):
        network.refuse()
    yield
    for network in (rig.reload_network, rig.offload_network):
        network.accept()


@asynccontextmanager
async def _servers_reset(rig: Rig) -> AsyncIterator[None]:
    """The connections of a node that rests between two calls."""
    async with rig.node() as client:
        rig.resting = client
        await client.match(SPEC, KEPT.tokens)
        for network in (rig.reload_network, rig.offload_network):
            network.cut()
        yield
        rig.resting = None


@asynccontextmanager
async def _servers_swallowed(rig: Rig) -> AsyncIterator[None]:
    for network in (rig.reload_network, rig.offload_network):
        network.swallows = True
    yield
    for network in (rig.reload_network, rig.offload_network):
        network.swallows = False
        network.cut()


def _as_node(**options: Any) -> Break:
    """The node comes with other options."""

    @asynccontextmanager
    async def broken(rig: Rig) -> AsyncIterator[None]:
        rig.node_options = {"token": NODE, **options}
        yield
        rig.node_options = {"token": NODE}

    return broken


@asynccontextmanager
async def _tls(rig: Rig) -> AsyncIterator[None]:
    """The node wants TLS of ports that speak none."""
    rig.node_options = {"token": NODE, "tls": Tls(ca=Authority().write(rig.folder))}
    yield
    rig.node_options = {"token": NODE}


def _policy(line: str) -> Break:
    @asynccontextmanager
    async def broken(rig: Rig) -> AsyncIterator[None]:
        file = rig.folder / "policies.toml"
        former = file.read_text()
        file.write_text(f"[default]\n{line}\n")
        look_again()
        with suppress(QuotaExceeded):  # a first call may be made of any quota of them
            await rig.patient.match(SPEC, KEPT.tokens)
        yield
        file.write_text(former)
        look_again()

    return broken


@asynccontextmanager
async def _encoders_lost(rig: Rig) -> AsyncIterator[None]:
    rig.encoders.lost = True
    yield
    rig.encoders.lost = False


@asynccontextmanager
async def _no_encoder(rig: Rig) -> AsyncIterator[None]:
    rig.encoders.silent = True
    yield
    rig.encoders.silent = False


@asynccontextmanager
async def _no_time(rig: Rig) -> AsyncIterator[None]:
    rig.seconds = 1e-6
    yield
    rig.seconds = SHORT_S


@asynccontextmanager
async def _given_up(rig: Rig) -> AsyncIterator[None]:
    rig.cancelled = True
    yield
    rig.cancelled = False


ROWS: Final[dict[str, Row]] = {
    "redis killed": every(_redis_killed, AWAY, loses=True),
    "redis stopped": every(_redis_stopped, SILENT, deadline=True),
    "connections forgotten": every(_forgotten, (*WELL, *SILENT)),
    "network swallows": every(_black_hole, SILENT, deadline=True),
    "port refused": every(_refused, AWAY),
    "connections reset": every(_reset, WELL),
    "100 ms an answer": every(_slow, (*WELL, *SILENT)),
    "out of memory": Row(_FULL, WELL, WELL, (Busy,), (None, Busy)),
    "names revoked": every(_REVOKED, (ConfigurationError,)),
    "writes revoked": Row(
        _UNWRITABLE,
        (None, ConfigurationError),
        (None, ConfigurationError),
        (ConfigurationError,),
        (ConfigurationError,),
    ),
    "password changed": every(_ANOTHER_PASSWORD, (ConfigurationError,)),
    "read-only replica": Row(_REPLICA, WELL, WELL, AWAY, AWAY),
    "replica without its primary": every(_STALE, AWAY),
    "frame truncated": Row(
        _rewritten(lambda f: f[: len(f) // 2]), WELL, (DamagedFrame,), WELL, WELL, 1
    ),
    "frame emptied": Row(
        _rewritten(lambda f: f[:HEADER_BYTES]), WELL, (DamagedFrame,), WELL, WELL, 1
    ),
    "bit turned": Row(_rewritten(flipped), WELL, (DamagedFrame,), WELL, WELL, 1),
    "another page's frames": Row(_misplaced, WELL, (DamagedFrame,), WELL, WELL, 1),
    "newer version of a frame": Row(
        _rewritten(lambda f: of_version(f, 99)), WELL, (NewerFrame,), WELL, WELL, 1
    ),
    "newer codec of a frame": Row(
        _rewritten(lambda f: of_codec(f, 999)), WELL, (NewerFrame,), WELL, WELL, 1
    ),
    "frame lost": Row(_rewritten(lambda f: None), WELL, (DamagedFrame,), WELL, WELL, 1),
    "servers gone": every(_servers_gone, (Unavailable,)),
    "connections to servers reset": every(_servers_reset, (None, Unavailable)),
    "servers swallowed": every(_servers_swallowed, (DeadlineExpired, Unavailable), deadline=True),
    "wrong token": every(_as_node(token="token-of-nobody-01234"), (Unauthenticated,)),
    "role lacking": Row(
        _as_node(token=READER), WELL, WELL, (PermissionDenied,), (PermissionDenied,)
    ),
    "no TLS there": Row(_tls, (Unavailable,), (Unavailable,), (Unavailable,), WELL),
    "quota of bytes": Row(_policy("max_inflight_bytes = 1"), WELL, WELL, (QuotaExceeded,), WELL),
    "quota of calls": Row(
        _policy("max_calls_per_s = 1e-6"),
        (QuotaExceeded,),
        (QuotaExceeded,),
        (QuotaExceeded,),
        WELL,
    ),
    "encoders lost": Row(_encoders_lost, WELL, WELL, (EncoderLost,), WELL),
    "no encoder": Row(_no_encoder, WELL, WELL, (DeadlineExpired,), WELL, deadline=True),
    "deadline over": every(_no_time, (DeadlineExpired,), deadline=True),
    "cancelled half-way": every(_given_up, (*CANCELLED, *WELL)),
}
