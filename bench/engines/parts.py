"""What the programs of this folder do with the parts that they measure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from lexico_lab.record import RESULTS

Answer = list[int]
"""Token ids."""
AGREED: Final = ("prompts", "answer tokens", "free", "forced", "whole answers")
"""Of a row of `agreement`, what pieces of a run add up to."""
Rows = dict[str, Any]
"""Codec or cache → what was measured of it."""


def earlier(file: str, engine: str) -> dict[str, Rows]:
    """The parts of an engine in `bench/results/FILE.json`; none where there is no such file."""
    path = RESULTS / f"{file}.json"
    parts: dict[str, Rows] = json.loads(path.read_text())[engine] if path.is_file() else {}
    return parts


def added(before: Rows, came: Rows, counts: tuple[str, ...]) -> Rows:
    """Rows with what was counted before and now.

    Raises:
        SystemExit: nothing was counted before.
    """
    if before.keys() != came.keys():
        raise SystemExit("--after: the file has no piece before this one")
    return {
        name: {**row, **{count: before[name][count] + row[count] for count in counts}}
        for name, row in came.items()
    }


def agreement(
    cache: str,
    prompts: Sequence[Answer],
    loaded: int,
    expected: Sequence[Answer],
    free: Sequence[Answer],
    forced: Sequence[Answer],
) -> dict[str, Any]:
    """A row: how far greedy answers agree with those that are expected.

    Args:
        cache: where the prompts' caches came from.
        prompts: token ids.
        loaded: tokens of all prompts that came from there.
        expected: answers, one a prompt.
        free: answers that went on from their own tokens.
        forced: next tokens, each behind the expected ones before it.
    """
    return {
        "cache": cache,
        "prompts": len(prompts),
        "prompt tokens": len(prompts[0]),
        "loaded": loaded // len(prompts),
        "answer tokens": sum(map(len, expected)),
        "free": _equal(free, expected),
        "forced": _equal(forced, expected),
        "whole answers": sum(a == b for a, b in zip(free, expected, strict=True)),
    }


def _equal(ours: Sequence[Answer], theirs: Sequence[Answer]) -> int:
    """Tokens that are the same."""
    return sum(
        a == b
        for mine, other in zip(ours, theirs, strict=True)
        for a, b in zip(mine, other, strict=True)
    )


def judged(
    found: Mapping[str, float], at_most: Mapping[str, float], at_least: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A row for each figure that was measured and has a goal."""
    goals = {name: ("<=", goal) for name, goal in at_most.items()}
    goals |= {name: (">=", goal) for name, goal in at_least.items()}
    return [
        {
            "figure": name,
            "measured": found[name],
            "goal": f"{sign} {goal:g}",
            "met": found[name] <= goal if sign == "<=" else found[name] >= goal,
        }
        for name, (sign, goal) in goals.items()
        if name in found
    ]


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of spreads the median."""
    return {name: v["median"] if isinstance(v, dict) else v for name, v in row.items()}
