"""Hashes of weights files that were read before, one small file for each.

A file counts as the same while device, inode, size, both of its times and a sample of its bytes
are: writes through a memory map leave the times as they are on some file systems. Whatever is wrong
with the cache costs a reading of the weights, no more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any, Final

import xxhash

from lexico_client._settings import cache_folder
from lexico_codec.canonical import canonical_json
from lexico_codec.files import write_atomically
from lexico_proto.errors import LexicoError

_log = logging.getLogger(__name__)

MAX_FILES: Final = 512
"""Files kept; the oldest go first."""
MAX_BYTES: Final = 64 << 20
"""Of one file that is read."""
SAMPLES: Final = 16
"""Pieces of a file that a sample reads, of `SAMPLE_BYTES` each."""
SAMPLE_BYTES: Final = 4096
SETTLED_NS: Final = 2_000_000_000
"""A file that changed this recently may change again within the same tick of its clock."""


def default_folder() -> Path | None:
    """The folder of the user's cache; None for a user who has none."""
    folder = cache_folder("fingerprints")
    return folder if folder.is_absolute() else None  # no home: "~" stays as it is


class FingerprintCache:
    """What was found in weights files. Safe for any number of processes."""

    def __init__(self, folder: Path | None) -> None:
        """
        Args:
            folder: where to keep it; None keeps nothing.
        """
        self._folder = folder

    def get(self, status: os.stat_result, sample: str) -> Any:
        """What was put for a file in this state; None for nothing, or nothing sound.

        Args:
            status: of the file.
            sample: of its bytes, see `sampled`.
        """
        if self._folder is None:
            return None
        place = _place_of(status, sample)
        try:
            with (self._folder / _name_of(place)).open("rb") as file:
                if os.fstat(file.fileno()).st_uid not in (os.geteuid(), 0):
                    return None  # someone else's word
                kept = json.loads(file.read(MAX_BYTES))
            found = kept["found"]
            return found if kept["place"] == place and kept["sum"] == _sum(found) else None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            if not isinstance(error, FileNotFoundError):
                _log.debug("fingerprint not usable: %s", error)
            return None

    def put(self, status: os.stat_result, sample: str, found: Any) -> None:
        """Keeps what was found in a file, unless the file has only just changed."""
        changed = max(status.st_mtime_ns, status.st_ctime_ns)
        if self._folder is None or time.time_ns() - changed < SETTLED_NS:
            return
        place = _place_of(status, sample)
        document = {"place": place, "found": found, "sum": _sum(found)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._folder / _name_of(place), json.dumps(document).encode())
            self._prune(self._folder)
        except (OSError, LexicoError) as error:
            _log.debug("fingerprint not kept: %s", error)

    def _prune(self, folder: Path) -> None:
        kept = list(folder.glob("*.json"))
        if len(kept) <= MAX_FILES:
            return
        ages = {}
        for path in kept:
            with contextlib.suppress(OSError):  # another process prunes as well
                ages[path] = path.stat().st_mtime_ns
        for path in sorted(ages, key=ages.__getitem__)[: len(ages) - MAX_FILES]:
            path.unlink(missing_ok=True)


def sampled(file: int, size: int) -> str:
    """XXH3-128 of pieces from all over an open file: a few reads, however large it is. Weights that
    were trained on, or exchanged, are others in each of them; a few numbers alone may escape it.

    Args:
        file: its descriptor.
        size: its bytes.
    """
    found = xxhash.xxh3_128()
    step = max(1, size // SAMPLES)
    for start in range(0, size, step):
        found.update(os.pread(file, SAMPLE_BYTES, start))
    return found.hexdigest()


def _place_of(status: os.stat_result, sample: str) -> list[int | str]:
    return [
        sample,
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,  # a time of writing can be set back, this one cannot
    ]


def _name_of(place: list[int | str]) -> str:
    return hashlib.blake2b(repr(place).encode(), digest_size=20).hexdigest() + ".json"


def _sum(found: Any) -> str:
    return hashlib.blake2b(canonical_json(found).encode(), digest_size=16).hexdigest()
