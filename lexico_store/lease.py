"""The single-flight lease: one node prefills a page while the others wait or do something else."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from lexico_proto.errors import Busy, Unavailable


class Lease:
    """A lease that this caller holds until `release`, or until its time has run out.

    As a context manager it is released on leaving. Not for use by two threads at once.
    """

    def __init__(self, token: bytes, release: Callable[[bytes], bool]) -> None:
        self._token = token
        self._release = release
        self._released = False

    def release(self) -> bool:
        """Ends the lease. A lease that has expired is left alone: by now it may be another's.

        Returns:
            True if it was still ours. False if it had expired, or was released before.

        Raises:
            StoreUnavailable: the store does not answer; the lease ends by itself at its expiry.
        """
        if self._released:
            return False
        self._released = True
        return self._release(self._token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.release()
        except (Unavailable, Busy):
            # The lease ends at its expiry anyway; an error here would hide the one of the body.
            return
