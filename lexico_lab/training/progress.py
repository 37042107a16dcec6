"""Progress on the terminal."""

from __future__ import annotations

from typing import Any, Protocol

from lexico_proto.errors import ConfigurationError


class Bars(Protocol):
    """Makes a progress bar, as tqdm does."""

    def __call__(self, *items: Any, **options: Any) -> Any:
        """A bar around what is iterated over, or one that is told of each step."""
        ...


def bars(*items: Any, **options: Any) -> Any:
    """Those of tqdm.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        from tqdm import tqdm  # `lexico serve` imports this module too, and needs no tqdm
    except ImportError as e:
        raise ConfigurationError("tqdm is not installed: lexico-offload[train]") from e
    return tqdm(*items, **options)
