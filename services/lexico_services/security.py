"""How the port of a server is secured. Its address and its tokens are in `ListenConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import grpc


class Security(Protocol):
    """Binds ports. It is pickled on its way to an ingress: it names files and holds none."""

    def bind(self, server: grpc.aio.Server, target: str) -> int:
        """Has a server that is not started listen on `host:port`, and returns the port taken.

        Raises:
            RuntimeError: gRPC cannot bind it.
            ConfigurationError: what secures it cannot be read or used.
        """


@dataclass(frozen=True)
class Plaintext:
    """No encryption: for loopback, and networks that keep others out."""

    def bind(self, server: grpc.aio.Server, target: str) -> int:
        """An insecure port."""
        return server.add_insecure_port(target)


PLAINTEXT: Final = Plaintext()
