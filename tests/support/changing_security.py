"""A way to secure channels whose certificates, were there any, change when told."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import grpc

from lexico_client._endpoint import Plaintext


class Changing:
    """Plaintext in numbered states."""

    def __init__(self) -> None:
        self.now = 0
        self.made: list[int] = []
        """State of each channel that was made."""

    def state(self) -> Hashable:
        return self.now

    def channel(
        self, address: str, options: Any, interceptors: Sequence[grpc.aio.ClientInterceptor]
    ) -> grpc.aio.Channel:
        self.made.append(self.now)
        return Plaintext().channel(address, options, interceptors)
