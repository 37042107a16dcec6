"""Says back what it is sent, and asks how long a byte takes there and back.

python -m tests.support.echo serve
python -m tests.support.echo ask HOST SECONDS
"""

from __future__ import annotations

import socket
import sys
import time
from typing import Final

PORT: Final = 7000


def serve() -> None:
    """One caller after another; says `listens` first."""
    with socket.create_server(("0.0.0.0", PORT)) as listening:
        print("listens", flush=True)
        while True:
            peer, _ = listening.accept()
            with peer:
                while taken := peer.recv(4096):
                    peer.sendall(taken)


def round_trip_s(host: str, within_s: float) -> float:
    """Of one byte, on a new connection.

    Raises:
        OSError: nobody answers in time.
    """
    with socket.create_connection((host, PORT), timeout=within_s) as peer:
        began = time.monotonic()
        peer.sendall(b"?")
        assert peer.recv(1) == b"?"
        return time.monotonic() - began


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        print(round_trip_s(sys.argv[2], float(sys.argv[3])))
