"""Which fault comes when: light ones all the time, those that cost a start rarely and apart."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Final

from bench.endurance.faults import FAULTS, HEAVY, MEDIUM

LIGHT_A_MINUTE: Final = 0.6
MEDIUM_A_MINUTE: Final = 0.3
HEAVY_A_MINUTE: Final = 0.2
"""Of each kind. In ten minutes eight starts of the whole service, of 15 to 25 s each."""
LEAST_PAUSE_S: Final = 0.5


def order_of(dice: random.Random, minutes: float) -> list[str]:
    """All faults of a run in their order: each kind once a round, the others evenly between."""
    light = sorted(FAULTS.keys() - MEDIUM - HEAVY)
    rounds = [dice.sample(light, len(light)) for _ in range(_times(LIGHT_A_MINUTE, minutes))]
    often = [name for each in rounds for name in each]
    rare = sorted(MEDIUM) * _times(MEDIUM_A_MINUTE, minutes)
    rare += sorted(HEAVY) * _times(HEAVY_A_MINUTE, minutes)
    dice.shuffle(rare)
    placed = [
        ((i + 0.5) / len(names), name) for names in (often, rare) for i, name in enumerate(names)
    ]
    return [name for _, name in sorted(placed)]


def paced(order: list[str], dice: random.Random, end: float) -> Iterator[tuple[str, float]]:
    """Each fault, and the pause before it in seconds: what is left of the time is shared out among
    those that are left, so that slow starts do not cost any of them.

    Args:
        order: names of faults.
        end: `time.monotonic` at which the last should be over.
    """
    for i, name in enumerate(order):
        share = (end - time.monotonic()) / (len(order) - i + 1)
        yield name, max(LEAST_PAUSE_S, share * dice.uniform(0.6, 1.4) - 1.0)


def _times(a_minute: float, minutes: float) -> int:
    return max(1, round(a_minute * minutes))
