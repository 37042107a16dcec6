"""Settings of the C library's allocator, for processes that pass pages on."""

from __future__ import annotations

import ctypes
import logging
import sys
from typing import Final

_log = logging.getLogger(__name__)

# From glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3

LARGEST_KEPT_BYTES: Final = 32 << 20
"""Longer blocks are mapped, and unmapped when freed: glibc's own maximum for this limit."""
KEPT_BYTES: Final = 128 << 20
"""Freed bytes at the end of a heap that stay with the process."""
GROWTH_BYTES: Final = 4 << 20
"""Bytes by which a heap grows at a time, at least."""


def keep_freed_memory() -> None:
    """Has freed memory of this process used again, in place of going back to the kernel.

    gRPC, protobuf and redis-py take and free a block of 1 MiB for each message. By its defaults
    glibc gives such blocks back when they are freed, so that each costs 256 page faults: measured
    at 0.7 s a GB, more than all copies of a message together. The price is up to `KEPT_BYTES` that
    an idle process holds in each of its heaps. Without effect where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return
    settings = (
        (_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES),
        (_M_TRIM_THRESHOLD, KEPT_BYTES),
        (_M_TOP_PAD, GROWTH_BYTES),
    )
    if not all(mallopt(name, value) for name, value in settings):
        _log.info("mallopt refused a setting: freed memory goes back to the kernel")
