"""Work for pools of workers, and a program that has a Ray cluster do it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
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


def main(address: str, folder: str, items: str, ordered: str) -> None:
    """Writes results, or class and message of an error, as JSON."""
    from lexico_lab.training.ray_pool import RayPool
    from lexico_worker.ray_runtime import RayConfig

    pool = RayPool(RayConfig(address=address))
    pool.start()
    found: list[object] = []
    try:
        for result in pool.map(Chores(Path(folder)), json.loads(items), ordered=ordered == "yes"):
            found.append(result)
    except LexicoError as error:
        found = [type(error).__name__, error.message]
    finally:
        pool.stop()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
