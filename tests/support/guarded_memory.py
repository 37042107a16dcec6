"""Bytes behind which no reader may look: the memory after them is not to be read."""

from __future__ import annotations

import ctypes
import mmap

_LIBC = ctypes.CDLL(None, use_errno=True)
_NONE = 0


def guarded(data: bytes) -> memoryview:
    """The bytes at the end of a page of memory. Who reads the byte after them ends the process."""
    page = mmap.PAGESIZE
    room = -(-max(1, len(data)) // page) * page
    memory = mmap.mmap(-1, room + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _LIBC.mprotect(ctypes.c_void_p(address + room), ctypes.c_size_t(page), _NONE):
        raise OSError(ctypes.get_errno(), "mprotect")
    view = memoryview(memory)[room - len(data) : room]
    view[:] = data
    return view.toreadonly()
