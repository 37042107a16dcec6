"""A Ray of two CPUs on loopback, in a process of its own, for others to join."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lexico_worker.ray_runtime import RayConfig, RayRuntime
from tests.support.waiting import PATIENCE_S


@dataclass(frozen=True)
class Cluster:
    """Where it is, and how to be let in."""

    address: str
    token: str
    """File with its token."""
    pid: int
    """All its processes come from this one."""

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that joins it."""
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": self.token}
        return {**os.environ, **own}


@contextmanager
def start() -> Iterator[Cluster]:
    """Ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.ray_cluster"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        told = process.stdout.readline()
        assert told, "Ray did not start"
        yield Cluster(**json.loads(told), pid=process.pid)
    finally:
        process.stdin.close()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def main() -> None:
    """Runs until standard input ends."""
    own = RayConfig(num_cpus=2, object_store_bytes=200 << 20, start_s=PATIENCE_S)
    runtime = RayRuntime(own)
    runtime.start()
    try:
        import ray

        address = ray.get_runtime_context().gcs_address
        told = {"address": address, "token": os.environ["RAY_AUTH_TOKEN_PATH"]}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        runtime.stop()


if __name__ == "__main__":
    main()
