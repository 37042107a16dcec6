"""The proxy that tests put between a client and a server."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from typing import Any

import pytest

from tests.support.proxy import Proxy
from tests.support.waiting import PATIENCE_S


def test_a_connection_that_is_being_made_ends_with_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An end that stayed open would be a warning, which is an error."""
    began = threading.Event()

    async def never(*_: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "open_connection", never)
    with Proxy(1) as proxy:
        caller = socket.create_connection(("127.0.0.1", proxy.port), PATIENCE_S)
        assert began.wait(PATIENCE_S)
    with caller, pytest.raises(ConnectionResetError):
        caller.recv(1)
    gc.collect()


def test_a_connection_to_nobody_is_reset() -> None:
    """While it is being made, or at its first byte: the proxy may be quicker than the caller."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with (
            Proxy(bound.getsockname()[1]) as proxy,
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", proxy.port), PATIENCE_S) as caller,
        ):
            caller.recv(1)
