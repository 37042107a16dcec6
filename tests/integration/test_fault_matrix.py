"""Every fault against every kind of call, by one oracle: never wrong, never hung, all given back.

Columns are the operations, rows are in `tests/support/fault_rows.py`; `fault_table.py` beside it
says which of them hold each failure of docs/failures.md.
"""

from __future__ import annotations

import gc
import os
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest

from lexico_store.redis_rights import RULE
from tests.support.fault_rig import KEPT, NEW, PAGES, SHORT_S, USER, Answer, Rig, running_rig
from tests.support.fault_rows import OPERATIONS, ROWS, Row
from tests.support.fault_table import ELSEWHERE, HEADING, HELD, failures_of
from tests.support.named_tests import ROOT, missing
from tests.support.servers import RedisServer, redis_server
from tests.support.topologies import client_of
from tests.support.waiting import PATIENCE_S, until


@pytest.fixture(scope="module")
def another_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], RedisServer]]:
    """The one that runs, or a new one in its place."""
    running: list[RedisServer] = []
    with ExitStack() as stack:

        def get() -> RedisServer:
            if not running or running[-1].process.poll() is not None:
                server = redis_server(tmp_path_factory.mktemp("redis"))
                running.append(stack.enter_context(server))
                with client_of(running[-1]) as raw:
                    raw.execute_command("ACL", "SETUSER", USER, "on", ">secret", *RULE.split())
            return running[-1]

        yield get


@pytest.fixture(scope="module")
def warm() -> set[str]:
    """Says that calls were made: what gRPC and torch take once, they keep."""
    return set()


@pytest.fixture
async def rig(
    another_redis: Callable[[], RedisServer], tmp_path: Path, warm: set[str]
) -> AsyncIterator[Rig]:
    """What it takes while it runs it gives back when it ends."""
    if not warm:
        async with running_rig(another_redis, tmp_path) as first:
            await first.fresh()
            warm |= {operation for operation in OPERATIONS if await first.call(operation)}
    # Its thread and sockets are there as long as anyone uses it: we do.
    grpc.aio.init_grpc_aio()  # type: ignore[attr-defined]
    before = _taken()
    async with running_rig(another_redis, tmp_path) as rig:
        yield rig
    await until(
        lambda: not _taken() - before,
        "threads and descriptors as before",
        lambda: _taken() - before,
    )
    grpc.aio.shutdown_grpc_aio()  # type: ignore[attr-defined]


def _taken() -> Counter[str]:
    """Threads of Python's by name, and descriptors by kind, but for those of the test's loop."""
    gc.collect()  # channels may lie in a circle
    names = (re.sub(r"-\d+", "", thread.name) for thread in threading.enumerate())
    taken = Counter(name for name in names if not name.startswith("asyncio_"))
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of this listing
            taken[os.readlink(f"/proc/self/fd/{name}").partition(":[")[0]] += 1
    del taken["anon_inode"]  # gRPC's pollers: made when many calls wait at a time, and kept
    return taken


@pytest.mark.parametrize("name", ROWS)
async def test_fault(rig: Rig, name: str) -> None:
    for operation in OPERATIONS:
        await _cell(rig, ROWS[name], operation)


async def _cell(rig: Rig, row: Row, operation: str) -> None:
    allowed = row.allowed(operation)
    await rig.fresh()
    rig.seconds = SHORT_S if row.deadline and None not in allowed else PATIENCE_S
    async with row.broken(rig):
        answer = await rig.call(operation)
    assert answer.error in allowed, f"{operation}: {answer}"
    rig.seconds = PATIENCE_S
    await rig.all_given_back()
    if operation == "load" and (answer.error is None or row.pages < PAGES):
        assert answer.pages == row.pages
    await _what_is_left(rig, row, operation, answer)
    await rig.fresh()  # and all of it works again


async def _what_is_left(rig: Rig, row: Row, operation: str, answer: Answer) -> None:
    """What either prompt gives now is what was offered; and it is there as the answer said."""
    kept, new = await rig.given(KEPT), await rig.given(NEW)
    done = answer.error is None
    if row.loses:
        assert (kept, new) == (0, 0)
    elif operation == "forget":
        assert kept == 0 if done else kept <= PAGES
    elif row.pages == PAGES:
        assert kept == PAGES
    if operation == "offload" and done:
        assert new == PAGES


def test_every_failure_of_the_table_is_held() -> None:
    """The table of docs/failures.md, this matrix and the tests that it names are one."""
    assert failures_of((ROOT / "docs" / "failures.md").read_text()) == list(HELD)
    names = {name for held in (*HELD.values(), *ELSEWHERE.values()) for name in held}
    rows = {name for name in names if not name.startswith("tests/")}
    assert rows <= ROWS.keys()
    assert [name for name in sorted(names - rows) if missing(name)] == []
    assert all((*HELD.values(), *ELSEWHERE.values())), "each is held by something"


def test_a_failure_without_a_cell_would_be_seen() -> None:
    document = f"{HEADING}\n\n| failure | class |\n|---|---|\n| a new one | `Busy` |\n\nend\n"
    assert failures_of(document) == ["a new one"]
    assert missing("tests/unit/test_nothing.py")
    assert missing("tests/unit/test_waiting.py::test_nothing")
    assert not missing("tests/unit/test_waiting.py::test_no_test_waits_for_seconds")
