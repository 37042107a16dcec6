"""How a method is shown in tables and in the plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lexico_codec.codecs import CODECS
from lexico_lab.evaluation.report.palette import OURS as OUR_COLOUR
from lexico_lab.evaluation.report.palette import SERIES
from lexico_lab.published.titles import CODERS, EVICTIONS, OURS

SETS: Final = {"wikitext2": "WikiText-2", "gsm8k": "GSM8K"}
CODED: Final = (" + lexico", " + lexico-residual")
"""End the name of an eviction whose kept tokens are coded, by what."""
GROUPS: Final = ("ours", "published codecs", "eviction", "eviction, what is kept coded by ours")
"""Titles of the kinds of method, by `Shown.group`."""
OF_OURS, OF_CODERS, OF_EVICTIONS, OF_BOTH = range(4)

Dashes = tuple[float, ...]
Result = Mapping[str, Any]

_DASHES: Final[tuple[Dashes, ...]] = ((), (), (1.5, 3), (7, 3), (7, 2, 2, 2))
"""By group; the last of an eviction before lexico-residual."""
_OTHERS: Final = SERIES[1:11]  # the first is too near to ours, the last to the grid
_OUR_DASHES: Final[tuple[Dashes, ...]] = ((), (9, 4), (3, 3), (9, 3, 2, 3))


@dataclass(frozen=True)
class Shown:
    """How a method is shown."""

    name: str
    """In the result."""
    title: str
    group: int
    """Index into `GROUPS`."""
    colour: str
    dashes: Dashes


def sets_of(result: Result) -> dict[str, Result]:
    """The text sets of a result: name → what was measured."""
    return {
        name: part for name, part in result.items() if isinstance(part, dict) and "points" in part
    }


def methods_of(names: Iterable[str]) -> list[Shown]:
    """Every method, ours first, each kind in the order of `titles` and by name."""
    shown: list[Shown] = []
    order = [*OURS, *CODECS, *CODERS, *EVICTIONS]
    places = {name: order.index(name) for name in order}

    def place(name: str) -> tuple[int, int, str]:
        bare = _bare(name)
        return group_of(name), places.get(bare, len(order)), name

    for name in sorted(set(names), key=place):
        group, bare = group_of(name), _bare(name)
        in_group = sum(one.group == group for one in shown)
        if group == OF_OURS:
            title, colour = bare, OUR_COLOUR
            dashes = _OUR_DASHES[in_group % len(_OUR_DASHES)]
        else:
            known = CODERS if group == OF_CODERS else EVICTIONS
            title, dashes = known.get(bare, bare) + name[len(bare) :], _DASHES[group]
            if name.endswith(CODED[1]):
                dashes = _DASHES[-1]
            place_of = list(known).index(bare) if bare in known else in_group
            colour = _OTHERS[place_of % len(_OTHERS)]
        shown.append(Shown(name, title, group, colour, dashes))
    return shown


def group_of(name: str) -> int:
    """The kind of a method, by its name in the result."""
    if name in CODECS:
        return OF_OURS
    if _bare(name) != name:
        return OF_BOTH
    return OF_EVICTIONS if name in EVICTIONS else OF_CODERS


def _bare(name: str) -> str:
    """The eviction whose kept tokens are coded, or the method itself."""
    return next((name.removesuffix(end) for end in CODED if name.endswith(end)), name)
