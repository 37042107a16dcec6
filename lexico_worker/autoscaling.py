"""How many encoders are wanted: the policy that Ray Serve's autoscaler asks.

Two things call for encoders. One is the queue: pages with encoders, and pages that wait for one.
The other is bytes: pages that were handed over and are not in the store fill the ingress's bound,
and callers are refused once it is full, however few pages those bytes are.

Serve counts the queue by itself, at each ingress's handle. Bytes come by the encoders: each page
says how full its ingress was, and each encoder tells the autoscaler what its pages say.

Serve pickles this module by value: it imports nothing of ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

FULLNESS: Final = "ingress_fullness"
"""Name of what encoders tell."""
ALL_AT: Final = 0.5
"""Fullness at which all encoders are wanted: the other half is for what comes until they run."""
LOOK_BACK_S: Final = 15.0
"""Seconds over which Serve takes the mean of what it was told: a page is a matter of a moment."""


class Fullness:
    """How full ingresses were as they handed over the pages that are in one encoder now.

    For one event loop.
    """

    def __init__(self) -> None:
        self._told: Counter[float] = Counter()

    @contextmanager
    def of(self, share: float) -> Iterator[None]:
        """A page is here for the block.

        Args:
            share: of the ingress's bytes in flight, 0..1.
        """
        self._told[share] += 1
        try:
            yield
        finally:
            self._told[share] -= 1
            if not self._told[share]:
                del self._told[share]

    def highest(self) -> float:
        """Of the fullest ingress; 0 without pages."""
        return max(self._told, default=0.0)


def encoders_wanted(context: Any) -> tuple[float, dict[str, Any]]:
    """The policy: whichever wants more, queue or bytes. Bounds and delays are Serve's to add.

    Args:
        context: a `ray.serve.config.AutoscalingContext`.

    Returns:
        Encoders, and a state that is never used.
    """
    by_queue = context.total_num_requests / context.config.get_target_ongoing_requests()
    told = (context.aggregated_metrics or {}).get(FULLNESS, {})
    fullest = min(1.0, max(told.values(), default=0.0) / ALL_AT)
    return max(by_queue, fullest * context.capacity_adjusted_max_replicas), {}
