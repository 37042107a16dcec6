"""What was found about one thing that a start needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from lexico_proto.text import one_line


class State(StrEnum):
    """How it is."""

    OK = "ok"
    WARN = "warn"
    """The service runs, slower or with less than one may expect."""
    FAIL = "fail"
    """The service does not start."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. Holds no secret."""

    name: str
    """A word, the same in every run: scripts look for it."""
    state: State
    text: str
    """What was found, in a line."""
    mend: str = ""
    """How to mend it, in a line; empty where all is well."""

    def line(self) -> str:
        """For people."""
        mend = f": {self.mend}" if self.mend else ""
        return f"{self.state:4} {self.name:12} {one_line(self.text + mend)}"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def ok(name: str, text: str) -> Finding:
    """All is well."""
    return Finding(name, State.OK, text)


def warn(name: str, text: str, mend: str) -> Finding:
    """See `State.WARN`."""
    return Finding(name, State.WARN, text, mend)


def fail(name: str, text: str, mend: str) -> Finding:
    """See `State.FAIL`."""
    return Finding(name, State.FAIL, text, mend)


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
