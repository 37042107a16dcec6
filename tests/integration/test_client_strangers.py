"""Peers that are no service of ours: nobody there, nobody answering, a byte now and then."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from lexico_client import AsyncClient, Timeouts
from lexico_proto import errors
from tests.support.client_fixtures import (
    PATIENT,
    TOKENS,
    Landing,
    random_cache,
    small_dictionary,
    small_spec,
    views_of,
)
from tests.support.waiting import PATIENCE_S, lingering

SPEC = small_spec()
SOURCE = views_of(SPEC, random_cache(SPEC, 4))


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def test_nobody_there(tmp_path: Path) -> None:
    address = f"127.0.0.1:{closed_port()}"
    async with AsyncClient(
        reload=address, offload=address, dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        loaded = await client.load(SPEC, TOKENS, Landing(SPEC))
        assert (loaded.tokens, type(loaded.reason)) == (0, errors.Unavailable)
        with pytest.raises(errors.Unavailable):
            await client.match(SPEC, TOKENS)
        with pytest.raises(errors.Unavailable):
            await client.offload(SPEC, TOKENS, SOURCE)
        with pytest.raises(errors.Unavailable):
            await client.register_dictionary(small_dictionary())


async def test_nobody_answers(tmp_path: Path) -> None:
    with socket.socket() as listener:  # takes connections, never says a word
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        async with AsyncClient(
            reload=address, dictionaries_dir=tmp_path, timeouts=Timeouts(match=0.3)
        ) as client:
            loaded = await client.load(SPEC, TOKENS, Landing(SPEC))
            assert type(loaded.reason) is errors.DeadlineExpired


@pytest.mark.parametrize("says", [b"", b"\0", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["0", "1", "http"])
async def test_a_peer_that_says_a_byte_now_and_then(tmp_path: Path, says: bytes) -> None:
    """No deadline but the call's own ends such a connection."""

    over, talks = asyncio.Event(), list[asyncio.Task[None] | None]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(asyncio.current_task())
        with contextlib.suppress(OSError):
            while not over.is_set():
                writer.write(says)
                await writer.drain()
                await lingering()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with AsyncClient(
        reload=f"127.0.0.1:{port}", offload=f"127.0.0.1:{port}", dictionaries_dir=tmp_path
    ) as client:
        async with asyncio.timeout(PATIENCE_S):
            loaded = await client.load(SPEC, TOKENS, Landing(SPEC), timeout=0.4)
            assert loaded.tokens == 0
            assert isinstance(loaded.reason, errors.DeadlineExpired | errors.Unavailable)
            for call in (
                client.match(SPEC, TOKENS, timeout=0.4),
                client.offload(SPEC, TOKENS, SOURCE, timeout=0.4),
                client.list_dictionaries(timeout=0.4),
            ):
                with pytest.raises(errors.LexicoError):
                    await call
    server.close()
    over.set()
    await asyncio.gather(*filter(None, talks))


async def test_a_name_that_does_not_resolve(tmp_path: Path) -> None:
    address = "no-such-host.invalid:7412"
    async with AsyncClient(reload=address, offload=address, dictionaries_dir=tmp_path) as client:
        async with asyncio.timeout(PATIENCE_S):
            loaded = await client.load(SPEC, TOKENS, Landing(SPEC), timeout=0.4)
            assert isinstance(loaded.reason, errors.DeadlineExpired | errors.Unavailable)
            with pytest.raises(errors.LexicoError):
                await client.offload(SPEC, TOKENS, SOURCE, timeout=0.4)
