"""A link between two network namespaces that takes its time and loses frames: this is netem for
kernels without it.

    python -m tests.support.delay_line PID NAME PID NAME SECONDS LOSS SEED

Each PID has a namespace, which is given a network device NAME (TAP). What one sends arrives at the
other after SECONDS, but for a part LOSS of the frames, which are drawn by SEED. The devices go with
this process.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import sys
import time
from pathlib import Path
from typing import Final

_TUNSETIFF: Final = 0x400454CA
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_CLONE_NEWNET: Final = 0x40000000
_FRAME_BYTES: Final = 65536
_MOST_QUEUED: Final = 4096
"""Frames on the link at a time; a longer queue drops what comes, as a router's does."""
_READ_AT_ONCE: Final = 64


def open_tap(pid: int, name: str) -> int:
    """A new TAP device in a process's network namespace; this thread is in it afterwards."""
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if libc.setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to process {pid}")
    finally:
        os.close(namespace)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return tap


class DelayLine:
    """Carries frames both ways between two devices."""

    def __init__(self, one: int, other: int, delay_s: float, loss: float, seed: int) -> None:
        self._to = {one: other, other: one}
        self._delay_s = delay_s
        self._loss = loss
        self._random = random.Random(seed)
        self._order = itertools.count()
        self._queue: list[tuple[float, int, int, bytes]] = []

    def run(self) -> None:
        """Until the process ends."""
        poll = select.poll()
        for tap in self._to:
            poll.register(tap, select.POLLIN)
        while True:
            for tap, _ in poll.poll(self._until_next_ms()):
                self._take(tap)
            self._deliver()

    def _until_next_ms(self) -> float | None:
        if not self._queue:
            return None
        return max(0.0, (self._queue[0][0] - time.monotonic()) * 1000)

    def _take(self, tap: int) -> None:
        for _ in range(_READ_AT_ONCE):
            try:
                frame = os.read(tap, _FRAME_BYTES)
            except OSError:  # none is left, or the device is down
                return
            if self._random.random() >= self._loss and len(self._queue) < _MOST_QUEUED:
                due = time.monotonic() + self._delay_s
                heapq.heappush(self._queue, (due, next(self._order), self._to[tap], frame))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._queue and self._queue[0][0] <= now:
            _, _, tap, frame = heapq.heappop(self._queue)
            try:
                os.write(tap, frame)
            except OSError:  # the device is down, or takes no more: the frame is lost
                continue


def main() -> None:
    """Writes `up` into the file READY_FILE of the environment once both devices are there."""
    one, name, other, other_name, delay_s, loss, seed = sys.argv[1:]
    # Opened before the first change of namespaces; the second is of a process outside them too.
    taps = open_tap(int(one), name), open_tap(int(other), other_name)
    Path(os.environ["READY_FILE"]).write_text("up")
    DelayLine(*taps, float(delay_s), float(loss), int(seed)).run()


if __name__ == "__main__":
    main()
