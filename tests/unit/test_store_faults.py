"""Servers that misbehave: each time an error of ours, soon, and never another call's reply."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from lexico_proto.errors import (
    Busy,
    ConfigurationError,
    InternalError,
    LexicoError,
    StoreUnavailable,
)
from lexico_proto.metrics import PROCESS, STORE_RETRIES
from lexico_store import PageStore, StoreSettings, open_store
from tests.support.servers import PATIENT, Answer, FakeServer, answer_of
from tests.support.waiting import PATIENCE_S, wait_until

SCOPE, KEY = b"s" * 16, b"k" * 32
HALF = b"$100\r\nhalf"
LONE = replace(PATIENT, max_connections=1)
QUICK = replace(LONE, timeout_s=0.25)

Serve = Callable[..., PageStore]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(answer: Answer, settings: StoreSettings = LONE) -> PageStore:
            server = stack.enter_context(FakeServer(tmp_path / "s", answer))
            return stack.enter_context(open_store(server.url, settings))

        yield start


def test_silence_times_out(serve: Serve) -> None:
    store = serve(lambda *_: b"", QUICK)
    for call in (store.ping, lambda: store.commit(SCOPE, KEY, [b"x" * (4 << 20)], 1)):
        with pytest.raises(StoreUnavailable):
            call()


def test_late_reply_is_not_the_next_calls(serve: Serve) -> None:
    given_up, sent = threading.Event(), threading.Event()

    def answer(connection: int, _: list[bytes]) -> bytes:
        if connection == 0:
            given_up.wait(PATIENCE_S)
            sent.set()
            return b":1\r\n"
        return b":0\r\n"

    store = serve(answer, QUICK)
    with pytest.raises(StoreUnavailable):
        store.present(SCOPE, [KEY])
    given_up.set()
    assert sent.wait(PATIENCE_S)
    assert answer_of(lambda: store.present(SCOPE, [KEY])) == [False]


def test_a_server_that_hangs_once_it_has_begun_a_transaction(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It confirmed MULTI, which is no answer yet: another connection gets the rest of the time."""
    monkeypatch.setattr("lexico_store.redis_exchange.FIRST_SHARE", 1 / PATIENCE_S)
    replies = {b"MULTI": b"+OK\r\n", b"EXEC": b"*3\r\n:0\r\n:1\r\n:1\r\n", b"PING": b"+PONG\r\n"}

    def answer(connection: int, command: list[bytes]) -> bytes:
        if connection == 0 and command[0] not in (b"PING", b"MULTI"):
            return b""
        return replies.get(command[0], b"+QUEUED\r\n")

    store = serve(answer)
    store.ping()
    before = PROCESS.counter(STORE_RETRIES).number
    store.commit(SCOPE, KEY, [b"frame"], 1)
    assert PROCESS.counter(STORE_RETRIES).number == before + 1


def test_half_a_pipeline_then_silence(serve: Serve) -> None:
    """The first reply came, the second did not: no part may be used, nor met later."""
    keys = [KEY, b"j" * 32]
    asked: list[list[bytes]] = []

    def answer(connection: int, command: list[bytes]) -> bytes:
        asked.append(command)
        if connection == 0:
            return b"$5\r\nstale\r\n" if len(asked) == 1 else b""
        return b"$5\r\nfresh\r\n"

    store = serve(answer, QUICK)
    with pytest.raises(StoreUnavailable):
        store.read(SCOPE, keys, 0)
    assert answer_of(lambda: store.read(SCOPE, keys, 0)) == [b"fresh", b"fresh"]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (None, StoreUnavailable),
        (HALF, StoreUnavailable),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", StoreUnavailable),
        (b"-LOADING Redis is loading the dataset in memory\r\n", StoreUnavailable),
        (b"-READONLY You can't write against a read only replica.\r\n", StoreUnavailable),
        (b"-MASTERDOWN Link with MASTER is down\r\n", StoreUnavailable),
        (b"-CLUSTERDOWN The cluster is down\r\n", StoreUnavailable),
        (b"-MISCONF Redis is configured to save RDB snapshots\r\n", StoreUnavailable),
        (b"-NOREPLICAS Not enough good replicas to write.\r\n", StoreUnavailable),
        (b"-ERR max number of clients reached\r\n", StoreUnavailable),
        (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", Busy),
        (b"-NOAUTH Authentication required.\r\n", ConfigurationError),
        (b"-WRONGPASS invalid username-password pair\r\n", ConfigurationError),
        (b"-NOPERM this user has no permissions\r\n", ConfigurationError),
        (b"-ERR The user executing the script can't run this command\r\n", ConfigurationError),
        (
            b"-ERR The user executing the script can't access at least one key\r\n",
            ConfigurationError,
        ),
        (b"-WRONGTYPE Operation against a key\r\n", InternalError),
        (b"-ERR unknown command\r\n", InternalError),
    ],
)
def test_every_failure_has_its_error(
    serve: Serve, reply: bytes | None, error: type[LexicoError]
) -> None:
    store = serve(lambda *_: reply, QUICK if reply == HALF else LONE)
    with pytest.raises(error) as caught:
        store.read_page(SCOPE, KEY)
    assert type(caught.value) is error
    assert caught.value.__cause__ is not None
    assert "lx1:" not in str(caught.value)
    with pytest.raises(error):
        store.touch(SCOPE, [KEY], 1)


def test_refused_write_in_a_transaction(serve: Serve) -> None:
    """What a full server says: it refuses the HSET, then aborts the EXEC."""
    replies = {
        b"MULTI": b"+OK\r\n",
        b"HSET": b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
        b"EXEC": b"-EXECABORT Transaction discarded because of previous errors.\r\n",
    }
    store = serve(lambda _, command: replies.get(command[0], b"+QUEUED\r\n"))
    for _ in range(2):
        with pytest.raises(Busy, match="maxmemory"):
            store.commit(SCOPE, KEY, [b"x" * 10_000], 1)


@pytest.mark.parametrize(
    ("cause", "error"),
    [
        (b"OOM command not allowed when used memory > 'maxmemory'.", Busy),
        (b"NOPERM this user has no permissions to run the 'exec' command", ConfigurationError),
        (b"READONLY You can't write against a read only replica.", StoreUnavailable),
        (b"NOREPLICAS Not enough good replicas to write.", StoreUnavailable),
        (b"previous errors", InternalError),
    ],
)
def test_what_refuses_an_exec_is_its_error(
    serve: Serve, cause: bytes, error: type[LexicoError]
) -> None:
    """Memory, rights and roles may change between the commands of a MULTI and its end."""
    abort = b"-EXECABORT Transaction discarded because of: " + cause + b"\r\n"
    replies = {b"MULTI": b"+OK\r\n", b"EXEC": abort}
    store = serve(lambda _, command: replies.get(command[0], b"+QUEUED\r\n"))
    with pytest.raises(error) as caught:
        store.commit(SCOPE, KEY, [b"x"], 1)
    assert type(caught.value) is error


def test_connection_that_is_in_use_too_long_is_busy(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, gone = threading.Event(), threading.Event()

    def answer(connection: int, _: list[bytes]) -> bytes:
        held.set()
        gone.wait(PATIENCE_S)
        return b":0\r\n"

    store = serve(answer)
    slow = threading.Thread(target=store.present, args=(SCOPE, [KEY] * 4))
    slow.start()
    assert held.wait(PATIENCE_S)
    # The wait for a connection is as long as that for an answer, which must not end before it.
    monkeypatch.setattr(store, "_slot_wait_s", 0.05)
    with pytest.raises(Busy, match="connections"):
        store.ping()
    gone.set()
    slow.join()


def test_no_server_and_no_socket(tmp_path: Path) -> None:
    with open_store(f"unix://{tmp_path}/nothing", QUICK) as store:
        with pytest.raises(StoreUnavailable):
            store.ping()


def test_close_waits_for_running_calls(serve: Serve) -> None:
    results: list[list[bool]] = []
    asked = threading.Event()

    def answer(connection: int, _: list[bytes]) -> bytes:
        asked.set()
        wait_until(lambda: store._closed, "the store's end")  # type: ignore[attr-defined]
        return b":1\r\n"

    store = serve(answer)
    thread = threading.Thread(target=lambda: results.append(store.present(SCOPE, [KEY])))
    thread.start()
    assert asked.wait(PATIENCE_S)
    store.close()
    thread.join()
    assert results == [[True]]
    with pytest.raises(StoreUnavailable, match="closed"):
        store.ping()
