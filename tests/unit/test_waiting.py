"""How tests wait, and that they wait in no other way."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import waiting
from tests.support.waiting import PATIENCE_S, settle, skip_ahead, until, wait_until

TESTS = Path(__file__).parents[1]
CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "time_ns"}
WAITS = {"sleep", "wait", "wait_procs", "join", "communicate"}


def test_what_a_state_looks_like_is_given_back() -> None:
    states = iter([[], [], ["there"]])
    assert wait_until(lambda: next(states), "something") == ["there"]


async def test_a_failure_says_what_was_waited_for_and_what_was_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "PATIENCE_S", 0.0)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)the store.*seen: \[\]"):
        wait_until(lambda: [], "the store")
    with pytest.raises(pytest.fail.Exception, match=r"(?s)the store.*seen: half of it"):
        await until(lambda: False, "the store", lambda: "half of it")


async def test_time_that_is_skipped_is_over_for_timers() -> None:
    loop = asyncio.get_running_loop()
    for _ in range(2):
        began = loop.time()
        waiting_long = asyncio.create_task(asyncio.wait_for(asyncio.Event().wait(), PATIENCE_S))
        await settle()
        skip_ahead()
        with pytest.raises(TimeoutError):
            await waiting_long
        assert loop.time() - began >= 2 * PATIENCE_S


async def test_what_is_ready_runs_to_its_end() -> None:
    steps = []

    async def walk() -> None:
        for step in range(9):
            await asyncio.sleep(0)
            steps.append(step)

    walking = asyncio.create_task(walk())
    await settle()
    assert walking.done()
    assert len(steps) == 9


def test_no_test_waits_for_seconds() -> None:
    found = []
    for path in sorted(TESTS.rglob("*.py")):
        if path.parent != TESTS / "support":
            tree = ast.parse(path.read_text())
            found += [f"{path.relative_to(TESTS)}:{line}" for line in sorted(set(seconds_in(tree)))]
    assert found == [], "wait for a state: tests/support/waiting.py"


def seconds_in(tree: ast.AST) -> Iterator[int]:
    """Lines that wait for a number of seconds, or look at a clock."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in CLOCKS:
            yield node.lineno
        elif isinstance(node, ast.Call) and name_of(node.func) in WAITS:
            given = [k.value for k in node.keywords if k.arg == "timeout"]
            given += node.args if len(node.args) == 1 else []
            if any(isinstance(each, ast.Constant) and is_seconds(each.value) for each in given):
                yield node.lineno


def name_of(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("time.sleep(0.2)", [1]),
        ("await asyncio.sleep(1)", [1]),
        ("await asyncio.sleep(0)", []),
        ("event.wait(5)\nevent.wait(PATIENCE_S)", [1]),
        ("process.communicate(timeout=30)", [1]),
        ("assert time.monotonic() - begun < 2", [1]),
        ("await budget.wait(100, 1)", []),
        ("' '.join(words)", []),
    ],
)
def test_what_counts_as_seconds(text: str, lines: list[int]) -> None:
    wrapped = "async def test():\n" + "".join(f"    {line}\n" for line in text.splitlines())
    assert [line - 1 for line in seconds_in(ast.parse(wrapped))] == lines
