"""Work for pools of workers, and a program that has a Ray cluster do it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lexico_proto.errors import InvalidInput, LexicoError
from tests.support.waiting import PATIENCE_S


@dataclass(frozen=True)
class Chores:
    """Negates numbers; words make trouble."""

    folder: Path
    """For what is to be remembered beyond a worker's death."""
    threads: int = 1

    def begin(self, device: str) -> Callable[[int | str], int]:
        """Leaves a file for each worker."""
        if device != "cpu":
            raise InvalidInput(f"not on {device}")
        (self.folder / f"began-{os.getpid()}").touch()
        return self._do

    def _do(self, item: int | str) -> int:
        if isinstance(item, int):
            time.sleep(0.02 if item % 3 else 0.2)
            return -item
        if item == "slow":
            (self.folder / "slow").touch()
            time.sleep(10 * PATIENCE_S)
        if item == "refuse":
            raise InvalidInput("such an item")
        if item == "break":
            raise OSError("such a machine")
        once = self.folder / "died"
        if item == "die" or not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 0


class Foreman:
    """A process that has joined a cluster, and has it do chores."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def begin(
        self, folder: Path, items: list[object], ordered: bool = True, device: str | None = None
    ) -> None:
        """Has chores done on a device, and does not wait for them."""
        assert self.process.stdin is not None
        asked = {"folder": str(folder), "items": items, "ordered": ordered, "device": device}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def ask(
        self, folder: Path, items: list[object], ordered: bool = True, device: str | None = None
    ) -> list[object]:
        """What becomes of chores: results, or class and message of an error."""
        self.begin(folder, items, ordered, device)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the foreman is gone"
        answer: list[object] = json.loads(line)
        return answer


@contextmanager
def foreman(address: str, environment: Mapping[str, str]) -> Iterator[Foreman]:
    """Ends with the block.

    Args:
        address: of the cluster.
        environment: of a process that joins it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.training_work", address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(environment),
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells' `&` ignores it
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Foreman(process)
        process.stdin.close()
        process.wait(PATIENCE_S)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main(address: str) -> None:
    """Chores of one line of JSON after the other, each answered with one, until input ends."""
    from lexico_lab.training.ray_pool import RayPool
    from lexico_worker.ray_runtime import RayConfig

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray writes there what it pleases
    config = RayConfig(address=address)
    joined = RayPool(config)
    joined.start()
    try:
        for line in sys.stdin:
            asked = json.loads(line)
            found: list[object] = []
            try:
                pool = RayPool(config, asked["device"])
                work = Chores(Path(asked["folder"]))
                found.extend(pool.map(work, asked["items"], ordered=asked["ordered"]))
            except LexicoError as error:
                found = [type(error).__name__, error.message]
            answers.write(json.dumps(found) + "\n")
            answers.flush()
    finally:
        joined.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
