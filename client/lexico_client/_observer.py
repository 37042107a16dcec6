"""Hooks: what an application hears of the client's work, for metrics and logs of its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CallEnded:
    """One call to the service, at its end."""

    method: str
    """Of the RPC, in lower case: `match`, `get`, `put`."""
    outcome: str
    """ok, or the reason of the error."""
    seconds: float
    request: str
    """Request id, which the service's log lines have too."""


@dataclass(frozen=True)
class LoadEnded:
    """One load, at its end. It is a hit where `loaded_tokens` is not 0."""

    codec: str
    asked_tokens: int
    """Of full pages of the sequence."""
    matched_tokens: int
    """Leading ones of these that the service said it holds."""
    loaded_tokens: int
    """Leading ones that are in the caller's memory."""
    miss: str | None
    """Why nothing came, or less than was matched: absent, or the reason of an error."""
    bytes_received: int
    """Of frames."""
    seconds: float
    decode_seconds: float
    request: str


@dataclass(frozen=True)
class OffloadEnded:
    """One offload, at its end."""

    codec: str
    tokens: int
    """That the pages cover; 0 where it failed."""
    pages_stored: int
    """Pages that this call stored, of those that it waited for."""
    bytes_sent: int
    """Of cache."""
    bytes_stored: int
    """Of frames."""
    error: str | None
    """Reason of the error; None where it was answered."""
    seconds: float
    request: str


class Observer:
    """Told of calls, loads and offloads as they end: subclass it, and give it to the client.

    Methods are called on the client's event loop, so they must be quick. What one raises is logged
    and changes nothing. Later releases may tell of more.
    """

    def call_ended(self, call: CallEnded) -> None:
        """A call to the service ended, however it did."""

    def load_ended(self, load: LoadEnded) -> None:
        """A load returned: a hit or a miss."""

    def offload_ended(self, offload: OffloadEnded) -> None:
        """An offload was answered, or failed."""
