"""What grows: resident memory, file descriptors and threads of every process."""

from __future__ import annotations

import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import psutil

EVERY_S: Final = 10.0


@dataclass
class Growth:
    """Samples of one process."""

    title: str
    minutes: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def summary(self, after: float) -> dict[str, Any] | None:
        """First against last quarter of the samples after some minutes; None for too few."""
        first = next((i for i, m in enumerate(self.minutes) if m >= after), len(self.minutes))
        count = len(self.minutes) - first
        if count < 8:
            return None
        quarter = count // 4
        result: dict[str, Any] = {"process": self.title}
        for name in ("rss", "descriptors", "threads"):
            values = getattr(self, name)[first:]
            start, end = (statistics.median(v) for v in (values[:quarter], values[-quarter:]))
            result |= {name: end, f"{name} growth": (end - start) / start if start else 0.0}
        return result


class Watch:
    """Samples processes by and by."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._next = 0.0
        self.processes: dict[int, Growth] = {}

    def passing(self, after: float) -> list[str]:
        """Processes that were not there all the time from some minutes on: one that ends, and
        another in its place, have no growth to be judged by. Those of one sample are left out: Ray
        starts programs that end at once.
        """
        looks = [m for each in self.processes.values() for m in each.minutes if m >= after]
        return [
            f"{each.title}: minutes {each.minutes[0]:.1f} to {each.minutes[-1]:.1f}"
            for each in self.processes.values()
            if len(each.minutes) > 1
            and each.minutes[-1] >= after
            and (each.minutes[0] > min(looks) or each.minutes[-1] < max(looks))
        ]

    def look(self, processes: dict[str, psutil.Process]) -> None:
        """Takes a sample where one is due."""
        now = time.monotonic() - self._started
        if now < self._next:
            return
        self._next = now + EVERY_S
        for title, process in processes.items():
            with suppress(psutil.Error):
                growth = self.processes.setdefault(process.pid, Growth(title))
                numbers = process.memory_info().rss, process.num_fds(), process.num_threads()
                growth.minutes.append(now / 60)
                for kept, number in zip(
                    (growth.rss, growth.descriptors, growth.threads), numbers, strict=True
                ):
                    kept.append(number)
