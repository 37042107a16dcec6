"""Calls of an adapter in an engine's process, a line of a file each."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Final

CALLS: Final = "LEXICO_BENCH_CALLS"
"""Environment: the file."""

Span = tuple[float, float]
"""When a call began and ended, by the clock that all processes of a machine have in common."""


def now() -> float:
    """Of that clock, in seconds."""
    return time.monotonic()


def write(name: str, began: float) -> None:
    """A call that ends now. Of several threads each line stays whole."""
    line = json.dumps({"call": name, "began": began, "ended": now()}) + "\n"
    with open(os.environ[CALLS], "ab", buffering=0) as file:
        file.write(line.encode())


def read(file: Path) -> dict[str, list[Span]]:
    """Calls by their names."""
    spans: dict[str, list[Span]] = {}
    for line in file.read_text().splitlines():
        call = json.loads(line)
        spans.setdefault(call["call"], []).append((call["began"], call["ended"]))
    return spans


def seconds(spans: list[Span]) -> float:
    """Of all of them."""
    return sum(ended - began for began, ended in spans)


def underneath(outer: list[Span], inner: list[Span]) -> float:
    """Seconds from the first to the last of the inner calls within each outer one."""
    total = 0.0
    for began, ended in outer:
        within = [span for span in inner if began <= span[0] <= ended]
        total += max(last for _, last in within) - min(first for first, _ in within)
    return total
