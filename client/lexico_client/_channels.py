"""gRPC channels, each of one process and one event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import grpc
import grpc.aio

from lexico_client._endpoint import Endpoint, Security
from lexico_client._errors import translated
from lexico_codec.forks import renew_in_children
from lexico_proto.errors import Unsupported
from lexico_proto.installed import check_grpcio
from lexico_proto.limits import MESSAGE_BYTES, PIECE_BYTES

check_grpcio(grpc.__version__)

_log = logging.getLogger(__name__)

_OPTIONS: Final = (
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.http2.max_frame_size", PIECE_BYTES),  # fewer pieces to put together than of 16 KiB
    # A dead peer is noticed in the middle of a call; an idle channel stays silent, since servers
    # refuse pings that come too often.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Caches travel inside the cluster: a web proxy in the environment is not for them.
    ("grpc.enable_http_proxy", 0),
    # Where a name has several addresses, calls go to each of them in turn, and the next one to
    # another where a server went away.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    # A lost connection has the name looked up again, by default once in 30 s at most: longer than
    # the servers of a rolling change need to be all gone.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Channels of one process to one address do not share a connection, nor an event loop.
    ("grpc.use_local_subchannel_pool", 1),
)

_FORKED: Final = (
    "gRPC channels were open when this process was forked, and gRPC cannot be used in it: fork "
    "before the client's first call, or close the client before"
)
_RETIRED_SECONDS: Final = 600.0
"""What calls that were begun on a channel that was replaced are given to end."""
_FAILING_SECONDS: Final = 5.0
"""After which a channel that reaches nobody is replaced. gRPC waits ever longer, up to two minutes,
before it looks up a name again that had no address; a new channel looks at once."""
_OF_PARENTS: Final[list[object]] = []
"""Channels that were open when the process was forked. They are kept, never closed: that would take
their sockets out of the epoll set that both processes share, and the parent's calls would hang."""


@dataclass
class _Open:
    """A channel, and how it is doing."""

    state: Hashable
    """What it is secured with."""
    channel: grpc.aio.Channel
    failing_since: float | None = None
    """When it was first seen to reach nobody, by the clock of the loop."""

    def fails(self, now: float) -> bool:
        """Whether it has reached nobody for so long that another one is to try."""
        if self.channel.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            self.failing_since = None
        elif self.failing_since is None:
            self.failing_since = now
        return self.failing_since is not None and now - self.failing_since > _FAILING_SECONDS


class Channels:
    """Channels by endpoint, opened when first used, for the event loop of that moment.

    Once that loop is closed, the next one may take its place.

    gRPC's own threads are not there in a forked child, and what it makes of a new channel then is
    a call without an end, or a crash. So a child of a process with open channels gets an error, and
    gRPC is not touched there. Where none was open, or all were closed, it works.
    """

    def __init__(self, interceptors: Sequence[grpc.aio.ClientInterceptor] = ()) -> None:
        """
        Args:
            interceptors: of every channel; the first one is the outermost.
        """
        self._interceptors = interceptors
        self._open: dict[tuple[str, Security], _Open] = {}
        self._retired: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        self._loop: asyncio.AbstractEventLoop | None = None  # set before a channel is opened
        renew_in_children(self)

    def after_fork(self) -> None:
        """Leaves the channels to the parent."""
        if self._loop is not None:
            _OF_PARENTS.append((self._open, self._retired))
            self._open, self._retired, self._loop = {}, {}, None

    def to(self, endpoint: Endpoint) -> grpc.aio.Channel:
        """The channel for the next call: a new one where what secures it has changed, or where the
        former has reached nobody for a while.

        Raises:
            ConfigurationError: what secures it cannot be read or used.
            Unsupported: channels were open when this process was forked, or are open on another
                event loop.
        """
        loop = self._bind()
        security, key = endpoint.security, (endpoint.address, endpoint.security)
        state, opened = security.state(), self._open.get(key)
        fails = opened is not None and opened.fails(loop.time())
        if opened is not None and opened.state == state and not fails:
            return opened.channel
        channel = security.channel(endpoint.address, _OPTIONS, self._interceptors)
        self._open[key] = _Open(state, channel)
        if opened is not None:
            # One that fails has no calls that run, only those that are about to be told so.
            self._retire(opened.channel, _FAILING_SECONDS if fails else _RETIRED_SECONDS)
        return channel

    async def close(self) -> None:
        """Closes them, which ends their calls."""
        channels = [opened.channel for opened in self._open.values()] + list(self._retired.values())
        retiring = list(self._retired)
        self._open.clear()
        if self._loop is not None and not self._loop.is_closed():
            for task in retiring:
                task.cancel()
            await asyncio.gather(*retiring, return_exceptions=True)
            for channel in channels:
                with translated("close"):
                    await channel.close(None)
        self._retired.clear()
        self._loop = None

    def _retire(self, channel: grpc.aio.Channel, after_s: float) -> None:
        """Lets its calls end, then closes it.

        Not by the grace of `close`: it refuses at once calls that are still in interceptors.
        """

        async def close_later() -> None:
            await asyncio.sleep(after_s)
            await channel.close(None)

        task = asyncio.get_running_loop().create_task(close_later())
        self._retired[task] = channel
        task.add_done_callback(lambda done: self._retired.pop(done, None))

    def _bind(self) -> asyncio.AbstractEventLoop:
        if _OF_PARENTS:
            _warn(_FORKED)
            raise Unsupported(_FORKED)
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return loop
        if self._loop is not None and not self._loop.is_closed():
            raise Unsupported(
                "the client is in use on another event loop: make one client for each loop"
            )
        self._open.clear()  # which closes them; nobody waits for their calls any more
        self._retired.clear()
        self._loop = loop
        return loop


@cache
def _warn(words: str) -> None:
    """Once: each load says it again in its result."""
    _log.warning(words)
