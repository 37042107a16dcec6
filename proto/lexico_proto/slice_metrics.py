"""What an ingress counts of pages that come in slices: families of `lexico_proto.metrics`."""

from __future__ import annotations

from typing import Final

from lexico_proto.counters import Family, Label

SLICED_OUTCOMES: Final = ("whole", "expired", "refused", "drained")
"""Of pages that came in slices."""

SLICED_PAGES: Final = Family(
    "lexico_sliced_pages_total",
    "Pages that came in slices, by what became of them at the ingress: whole, and given to an "
    "encoder; expired, where slices were missing at the deadline; refused, where two slices did "
    "not fit each other; drained, where the ingress ended.",
    (Label("outcome", frozenset(SLICED_OUTCOMES)),),
)
SLICED_WAITING: Final = Family(
    "lexico_sliced_pages_waiting", "Pages of which some slices are here and others not.", gauge=True
)
SLICED_BYTES: Final = Family(
    "lexico_sliced_bytes",
    "Bytes of slices that wait for others; part of the bytes in flight.",
    gauge=True,
)
