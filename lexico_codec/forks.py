"""What a forked child renews.

A child has the memory of its parent and one thread of it. Locks that other threads held stay locked
there, and whatever waits for those threads waits for ever.
"""

from __future__ import annotations

import os
from typing import Final, Protocol
from weakref import WeakSet


class Inherited(Protocol):
    """Something with locks, threads or connections, of which a child has copies."""

    def after_fork(self) -> None:
        """Makes it fit for the child. Called there before the fork returns, on the only thread;
        must not wait, nor touch what the parent still uses."""


_INHERITED: Final[WeakSet[Inherited]] = WeakSet()


def renew_in_children(inherited: Inherited) -> None:
    """Has `after_fork` called in every child that is forked while the object lives."""
    _INHERITED.add(inherited)


def _renew() -> None:
    for inherited in list(_INHERITED):
        inherited.after_fork()


if hasattr(os, "register_at_fork"):  # where there are forks
    os.register_at_fork(after_in_child=_renew)
