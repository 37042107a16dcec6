"""What decides a transform, and which windows it is fitted to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from lexico_proto.errors import ConfigurationError

Progress = Callable[[Iterable[int], str], Iterable[int]]

_FIT_WINDOWS: Final = 48  # of them deviations, atoms and tables are made


@dataclass(frozen=True, slots=True)
class FitSettings:
    """What decides a transform, its observations given."""

    run_layers: int = 0
    """Layers that are coded together; a divisor of the model's. 0 stands for all of them, until the
    model is known."""
    joint: int = 2880
    """Components of a run in the second transform, R."""
    predictors: int = 512
    """Components that a token's gain is predicted from, F."""
    sparsity: int = 1
    """Atoms a token and run; 0 for none."""
    atoms: int = 2048
    """N."""
    width: int = 256
    """Components that atoms span, m."""
    blocks: int = 1
    """Blocks of heads with a first transform of their own."""
    vectors: int = 200_000
    """Vectors coded while learning atoms."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.run_layers, self.joint, self.sparsity) < 0:
            raise ConfigurationError("run_layers, joint and sparsity: must not be negative")
        if min(self.predictors, self.atoms, self.width, self.blocks, self.vectors) < 1:
            raise ConfigurationError(
                "predictors, atoms, width, blocks and vectors: must be positive"
            )


def thinned(windows: range, most: int) -> range:
    """About so many of the windows, evenly spread: never twice as many."""
    return windows[:: max(1, len(windows) // most)]


@dataclass(frozen=True, slots=True)
class Held:
    """Windows that are fitted to, and those that are not."""

    fitted: range
    held_out: range

    @classmethod
    def of(cls, windows: int) -> Held:
        """The last tenth, at least one, is held out."""
        last = windows - max(1, windows // 10)
        return cls(range(last), range(last, windows))

    def some(self) -> range:
        """About `_FIT_WINDOWS` of the fitted ones, evenly spread."""
        return thinned(self.fitted, _FIT_WINDOWS)
