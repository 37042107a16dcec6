"""Sizes as people write them."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE: Final = re.compile(r"([0-9]{1,15}) ?(KiB|MiB|GiB)")


def parse_size(text: str) -> int | None:
    """Bytes of a text such as "384 MiB"; None for any other text."""
    found = _SIZE.fullmatch(text.strip())
    return int(found[1]) * _UNITS[found[2]] if found is not None else None
