"""What is installed beside us, where it is too old to be used."""

from __future__ import annotations

from typing import Final

OLDEST_GRPCIO: Final = (1, 84)
"""Where the range of grpcio in pyproject.toml begins. Before it, a forked child of a process that
has used gRPC crashes, or its calls have no end; and servers do not find handlers of our own."""


def check_grpcio(version: str) -> None:
    """Called where gRPC is imported: pip's ranges do not hold where `--no-deps` was used.

    Args:
        version: `grpc.__version__`.

    Raises:
        ImportError: it is older than our range.
    """
    if tuple(map(int, version.split(".")[:2])) < OLDEST_GRPCIO:
        oldest = ".".join(map(str, OLDEST_GRPCIO))
        raise ImportError(
            f"grpcio {version} is too old for lexico-offload: pip install 'grpcio>={oldest}'"
        )
