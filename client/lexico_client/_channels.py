"""gRPC channels, each of one process and one event loop."""

from __future__ import annotations

import asyncio
import logging
from functools import cache
from typing import Final

import grpc
import grpc.aio

from lexico_client._errors import translated
from lexico_codec.forks import renew_in_children
from lexico_proto.errors import Unsupported
from lexico_proto.limits import MESSAGE_BYTES, PIECE_BYTES

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
    # Channels of one process to one address do not share a connection, nor an event loop.
    ("grpc.use_local_subchannel_pool", 1),
)

_FORKED: Final = (
    "gRPC channels were open when this process was forked, and gRPC cannot be used in it: fork "
    "before the client's first call, or close the client before"
)
_OF_PARENTS: Final[list[dict[str, grpc.aio.Channel]]] = []
"""Channels that were open when the process was forked. They are kept, never closed: that would take
their sockets out of the epoll set that both processes share, and the parent's calls would hang."""


class Channels:
    """Channels by address, opened when first used, for the event loop of that moment.

    Once that loop is closed, the next one may take its place.

    gRPC's own threads are not there in a forked child, and what it makes of a new channel then is
    a call without an end, or a crash. So a child of a process with open channels gets an error, and
    gRPC is not touched there. Where none was open, or all were closed, it works.
    """

    def __init__(self) -> None:
        self._open: dict[str, grpc.aio.Channel] = {}
        self._loop: asyncio.AbstractEventLoop | None = None  # set before a channel is opened
        renew_in_children(self)

    def after_fork(self) -> None:
        """Leaves the channels to the parent."""
        if self._loop is not None:
            _OF_PARENTS.append(self._open)
            self._open, self._loop = {}, None

    def to(self, address: str) -> grpc.aio.Channel:
        """The channel to `host:port` or `unix:path`.

        Raises:
            Unsupported: channels were open when this process was forked, or are open on another
                event loop.
        """
        self._bind()
        channel = self._open.get(address)
        if channel is None:
            channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
            self._open[address] = channel
        return channel

    async def close(self) -> None:
        """Closes them, which ends their calls."""
        while self._open:
            _, channel = self._open.popitem()
            if self._loop is not None and not self._loop.is_closed():
                with translated("close"):
                    await channel.close(None)
        self._loop = None

    def _bind(self) -> None:
        if _OF_PARENTS:
            _warn()
            raise Unsupported(_FORKED)
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise Unsupported(
                "the client is in use on another event loop: make one client for each loop"
            )
        self._open.clear()  # which closes them; nobody waits for their calls any more
        self._loop = loop


@cache
def _warn() -> None:
    """Once: each load says it again in its result."""
    _log.warning(_FORKED)
