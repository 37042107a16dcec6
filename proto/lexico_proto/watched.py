"""Files that may change while a process runs, such as tokens and certificates.

Nothing here needs a thread or a signal: whoever uses the files asks for them on each call, and they
are looked at again once a second at most. Contents are compared, not times. So a folder that
Kubernetes swaps by a link, a copy that keeps its times, and two writes within one tick of the clock
are all noticed. The files are small, and reading them is cheap.
"""

from __future__ import annotations

import itertools
import logging
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

from lexico_proto.errors import ConfigurationError
from lexico_proto.metrics import FILE_READS, Metrics

_log = logging.getLogger(__name__)

MAX_FILE_BYTES: Final = 1 << 20
LOOK_EVERY_S: Final = 1.0
_UNFORESEEN: Final = (ValueError, ArithmeticError, LookupError, TypeError, RecursionError)
"""What a reader may raise of contents that nobody thought of: the calls go on."""

T = TypeVar("T")

_numbers: Final = itertools.count(1)
_asked = 0


def look_again() -> None:
    """Has every file of this process looked at before its next use, whenever the last look was.
    It only takes a note, so a signal handler may call it.
    """
    global _asked
    _asked = next(_numbers)


class WatchedFiles(Generic[T]):
    """What some files say together, as long as it makes sense: what does not is logged once, and
    what they said before stays in force. Any thread may ask.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        read: Callable[[Sequence[bytes]], T],
        metrics: Metrics | None = None,
    ) -> None:
        """Reads them.

        Args:
            what: the files are, for messages: `token file`.
            paths: of the files.
            read: makes of their bytes, in this order, what they say; raises `ConfigurationError`
                with a text that holds no secret where they cannot be used.
            metrics: where the readings that follow are counted, if anywhere.

        Raises:
            ConfigurationError: they cannot be read or used.
        """
        self._what = what
        self._paths = tuple(paths)
        self._read = read
        self._counters = None
        if metrics is not None:
            taken, refused = (metrics.counter(FILE_READS, each) for each in ("taken", "refused"))
            self._counters = taken, refused
        self._due, self._noted = time.monotonic() + LOOK_EVERY_S, _asked
        seen = self._contents()
        if isinstance(seen, str):
            raise ConfigurationError(seen)
        self._seen: tuple[bytes, ...] | str = seen
        self._now = 0, read(seen)

    def now(self) -> T:
        """What they say; never raises."""
        return self.numbered()[1]

    def numbered(self) -> tuple[int, T]:
        """What they say, and how often that has changed."""
        if time.monotonic() >= self._due or self._noted != _asked:
            # Set before the look: other threads meanwhile go on with what was known.
            self._due, self._noted = time.monotonic() + LOOK_EVERY_S, _asked
            self._look()
        return self._now

    def _look(self) -> None:
        seen = self._contents()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            if isinstance(seen, str):
                raise ConfigurationError(seen)
            self._now = self._now[0] + 1, self._read(seen)
        except (ConfigurationError, *_UNFORESEEN) as error:
            said = f"{error}" if isinstance(error, ConfigurationError) else self._unforeseen(error)
            _log.warning("%s: what it said before stays in force", said)
            self._count(1)
        else:
            _log.warning("%s %s read again", self._what, ", ".join(map(str, self._paths)))
            self._count(0)

    def _unforeseen(self, error: Exception) -> str:
        """Of what kind it is, and not its text, which may hold a secret of the file's."""
        return f"{self._what}: {type(error).__name__}"

    def _count(self, which: int) -> None:
        if self._counters is not None:
            self._counters[which].add()

    def _contents(self) -> tuple[bytes, ...] | str:
        """Their bytes, or why there are none."""
        contents = []
        for path in self._paths:
            try:
                contents.append(_bytes_of(path))
            except OSError as error:
                return f"{self._what} {path}: {error.strerror or error}"
            if len(contents[-1]) > MAX_FILE_BYTES:
                return f"{self._what} {path}: over {MAX_FILE_BYTES} bytes"
        return tuple(contents)


def _bytes_of(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, and is read once
        raise OSError("is no file")
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)
