"""The share of a run in which the service is up, as a stranger sees it."""

from __future__ import annotations

import threading
import time
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

EVERY_S: Final = 0.2
_OPTIONS: Final = (("grpc.max_reconnect_backoff_ms", 200), ("grpc.use_local_subchannel_pool", 1))


class Uptime:
    """Asks both servers for their health five times a second, in a thread."""

    def __init__(self, ports: tuple[int, int]) -> None:
        """
        Args:
            ports: of the reload and the offload server, on loopback.
        """
        self._ports = ports
        self._asked = 0
        self._up = [0, 0, 0]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def shares(self) -> dict[str, float]:
        """Shares of the samples so far: both servers, and each of them."""
        names = ("up_share", "reload_up_share", "offload_up_share")
        return {
            name: count / max(1, self._asked) for name, count in zip(names, self._up, strict=True)
        }

    def end(self) -> None:
        """No more questions."""
        self._ended.set()
        self._thread.join()

    def _ask(self) -> None:
        channels = [
            grpc.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS) for port in self._ports
        ]
        stubs = [health_pb2_grpc.HealthStub(channel) for channel in channels]
        while not self._ended.is_set():
            started = time.monotonic()
            well = [_serves(stub) for stub in stubs]
            self._asked += 1
            for i, up in enumerate((all(well), *well)):
                self._up[i] += up
            self._ended.wait(max(0.0, EVERY_S - (time.monotonic() - started)))
        for channel in channels:
            channel.close()


def _serves(stub: health_pb2_grpc.HealthStub) -> bool:
    try:
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
