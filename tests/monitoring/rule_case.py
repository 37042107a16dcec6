"""A case of an alert."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """What is known at a time, and what the alert makes of it."""

    alert: str
    severity: str
    what: str
    at: str
    """When it is looked at."""
    series: str
    """A line for each: selector and samples."""
    fires: tuple[dict[str, str], ...] = field(default=())
    """Labels of what fires, beside its name and severity; nothing for a silent alert."""
    step: str = "1m"
    """From one sample to the next, alike in all cases of an alert."""
