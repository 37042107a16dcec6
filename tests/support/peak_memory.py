"""The most memory that a process held, that of torch and of C++ among it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _held(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@contextmanager
def growing_at_most(limit: int) -> Iterator[None]:
    """Fails where the process held `limit` bytes more than at the start, however shortly."""
    try:
        _RESET.write_text("5")  # the peak so far is forgotten
    except OSError:
        pytest.skip("the peak of a process's memory cannot be reset here")
    before = _held("VmRSS")
    yield
    grown = _held("VmHWM") - before
    assert grown < limit, f"{grown} bytes more"
