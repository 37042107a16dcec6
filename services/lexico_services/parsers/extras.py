"""Optional packages that a command needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lexico_proto.errors import ConfigurationError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Names the extra to install where an optional package is missing.

    Raises:
        ConfigurationError: a package is missing that is not ours.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package.startswith("lexico_"):
            raise  # a defect of ours, for which there is nothing to install
        raise ConfigurationError(
            f"needs {package}: pip install 'lexico-offload[{extra}]'"
        ) from error
