"""How tests wait, and that they wait in no other way."""

from __future__ import annotations

import ast
import asyncio
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import waiting
from tests.support.waiting import PATIENCE_S, settle, skip_ahead, until, wait_until

TESTS = Path(__file__).parents[1]
CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "time_ns"}
WAITS = {"sleep", "wait", "wait_procs", "join", "communicate"}
IMPORT = re.compile(r"^ *(import \w+(, \w+)*|from [\w.]+ import .*)$", re.MULTILINE)
"""A line that makes a text a program."""
FIELD = re.compile(r"\{\w*(![ars])?\}")
"""What `str.format` fills in."""


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
            lines = set(seconds_in(tree))
            if path != Path(__file__):  # whose examples are no programs of tests
                lines |= set(seconds_in_programs(tree))
            found += [f"{path.relative_to(TESTS)}:{line}" for line in sorted(lines)]
    assert found == [], "wait for a state: tests/support/waiting.py"


def seconds_in_programs(tree: ast.AST) -> Iterator[int]:
    """The same of programs that a test has as texts, to run them in processes of their own."""
    for line, text in texts_in(tree):
        program = program_of(text)
        if program is not None:
            within = [*seconds_in(program), *seconds_in_programs(program)]
            yield from (line + each - 1 for each in within)


def texts_in(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Every text and the line where it begins; `_` is where an f-string puts something."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    elif isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else "_" for part in node.values)
        yield node.lineno, "".join(map(str, parts))
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                yield from texts_in(part.value)
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts_in(child)


def program_of(text: str) -> ast.Module | None:
    """The text as Python; None for one that is something else, or the name of a thing alone."""
    for form in (text, FIELD.sub("_", text).replace("{{", "{").replace("}}", "}")):
        try:
            program = ast.parse(textwrap.dedent(form))
        except (SyntaxError, ValueError):
            continue
        names = (ast.Attribute, ast.Name)
        alone = [n for n in program.body if isinstance(n, ast.Expr) and isinstance(n.value, names)]
        return None if program.body == alone else program
    assert not IMPORT.search(text), f"a program that cannot be read for what it waits: {text}"
    return None


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


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("PROGRAM = '''\nimport time\ntime.sleep(0.2)\n'''", [3]),
        ("run('import time; time.sleep(1)')", [1]),
        ("run(f'''\n    x = {one}\n    event.wait(5)\n''')", [3]),
        ("run('''\nopen({notes!r})\n{work}\n{{}}\nassert time.monotonic() < 2\n''')", [5]),
        ("run('''\ninner = \"time.sleep(3)\"\n''')", [2]),
        ("patch('there.time.monotonic')", []),
        ("'''Waits for a state: time.sleep(1) is none.'''", []),
        ("run('import time; time.sleep(PATIENCE_S)')", []),
    ],
)
def test_programs_in_texts_are_looked_at_too(text: str, lines: list[int]) -> None:
    assert sorted(seconds_in_programs(ast.parse(text))) == lines


def test_a_program_that_cannot_be_read_is_told() -> None:
    with pytest.raises(AssertionError, match="cannot be read"):
        list(seconds_in_programs(ast.parse("run('import time\\n%s time.sleep(3)')")))
