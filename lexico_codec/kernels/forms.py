"""What is made of a set's tensors once and kept: copies on devices, packed tables, inverses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import torch

from lexico_codec.forks import renew_in_children


class Forms:
    """Made things by name, safe among threads."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}
        self._lock = threading.Lock()
        renew_in_children(self)

    def after_fork(self) -> None:
        """Does not wait for what another thread was making when the process was forked."""
        self._lock = threading.Lock()

    def once(
        self, name: Hashable, make: Callable[[], Any], device: torch.device | None = None
    ) -> Any:
        """What `make` gives, made once under that name; `make` must not ask for forms itself.

        Args:
            name: of the form.
            make: makes it.
            device: where it lies. A CUDA device is waited for, so that any stream may use it.
        """
        with self._lock:
            if name not in self._made:
                made = make()
                if device is not None and device.type == "cuda":
                    torch.cuda.current_stream(device).synchronize()
                self._made[name] = made
            return self._made[name]
