"""One store for several processes of a machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lexico_proto.errors import ConfigurationError
from lexico_store.opening import start_embedded
from lexico_store.settings import StoreSettings


@contextmanager
def reachable_store(url: str, settings: StoreSettings | None = None) -> Iterator[str]:
    """URL by which other processes reach the store at `url`, while the block runs.

    For `embedded://` a server is started, and ended with the block; other URLs come back as they
    are.

    Raises:
        ConfigurationError: the store lives in one process alone (`memory://`), or the URL cannot be
            used.
        StoreUnavailable: the embedded server does not start.
    """
    check_shared(url)
    if url.partition(":")[0] != "embedded":
        yield url
        return
    with start_embedded(url, settings or StoreSettings()) as server:
        yield server.url


def check_shared(url: str) -> None:
    """Whether several processes can use a store.

    Raises:
        ConfigurationError: it lives in one process alone.
    """
    if url.partition(":")[0] == "memory":
        raise ConfigurationError(
            "memory:// lives in one process; use embedded://, unix:// or redis://"
        )
