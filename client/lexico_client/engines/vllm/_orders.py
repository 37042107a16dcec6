"""What the scheduler's side tells the workers' side to do: plain data, it is pickled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from lexico_codec.spec import CacheSpec

REST_S: Final = 0.01
"""How long an engine's thread that has nothing to compute waits for an answer before it looks for
other work. It holds Python's lock while it looks, and who decodes needs that too."""


@dataclass(frozen=True)
class Sequence:
    """Tokens whose pages are meant, and where an engine keeps their keys and values."""

    request_id: str
    spec: CacheSpec
    """What the pages belong to, of the whole model: the scheduler's side alone knows what they are
    coded with."""
    token_ids: npt.NDArray[np.uint32]
    """From position 0, full pages of them."""
    blocks: tuple[int, ...]
    """Block ids, from position 0 on, for all of these tokens that the engine holds."""


@dataclass(frozen=True)
class LoadOrder(Sequence):
    """Bring tokens into the engine's blocks."""

    start: int
    """First token that is wanted: those before it are there, and others may be reading them."""
    stop: int
    """Token behind the last one that is wanted."""


@dataclass(frozen=True)
class StoreOrder(Sequence):
    """Send the pages of a prompt, which is computed once the step that this goes with has run."""

    first_page: int
    """Pages before it are stored."""
    assembly: bytes = b""
    """Of the slices that ranks send: all of one order are of one computation."""


@dataclass
class Orders:
    """Of one step of the engine."""

    loads: list[LoadOrder] = field(default_factory=list)
    stores: list[StoreOrder] = field(default_factory=list)
    idle: bool = False
    """Whether the engine computes nothing in this step, nor in the one before: it may wait for
    loads."""
