"""How long a node is willing to wait, and where it keeps its files."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from lexico_proto.errors import ConfigurationError
from lexico_proto.limits import MAX_SECONDS


@dataclass(frozen=True)
class Timeouts:
    """Seconds for each kind of call, retries included: nothing waits for ever."""

    match: float = 2.0
    """Asking which pages are stored: it stands before a prefill, so it is short."""
    load: float = 30.0
    """A whole reload. What came within it is used, the rest is recomputed."""
    idle: float = 3.0
    """Between two messages of a reload. A service that stalls must not cost a whole `load`."""
    offload: float = 120.0
    """A whole offload, to the answer that `wait` asks for."""
    dictionaries: float = 60.0
    """Registering, publishing, fetching or listing dictionary sets."""
    probe: float = 1.0
    """Between two looks at a server that was silent; calls fail at once meanwhile. 0 for none: each
    call finds out by itself."""
    sets: float = 60.0
    """Between two questions for the set of a model that has none, about; longer after failures."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name == "probe" and self.probe == 0:
                continue
            check_seconds(f"timeouts: {field.name}", getattr(self, field.name))


def check_seconds(name: str, seconds: object) -> float:
    """`seconds` as a float, at most `MAX_SECONDS`: no clock of the system counts further.

    Raises:
        ConfigurationError: no finite positive number.
    """
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if number and 0 < seconds < math.inf:  # type: ignore[operator]
        return float(min(seconds, MAX_SECONDS))  # type: ignore[call-overload]
    raise ConfigurationError(f"{name}={seconds!r:.60}: a positive number of seconds")


def cache_folder(name: str) -> Path:
    """A folder of ours in the user's cache folder; relative for a user who has no home."""
    import platformdirs  # here, since callers may name folders of their own

    return Path(platformdirs.user_cache_dir("lexico-offload")) / name
