"""A name server on loopback whose answers change, as those of a cluster do."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

_HEADER: Final = struct.Struct(">HHHHHH")
_QUESTION: Final = struct.Struct(">HH")
_ANSWER: Final = struct.Struct(">HHHIH")
_A: Final = 1
_INTERNET: Final = 1
_POINTER_TO_QUESTION: Final = 0xC000 | _HEADER.size
_RESPONSE: Final = 0x8400  # it is an answer, of who has the name
_NO_SUCH_NAME: Final = 3


class Names:
    """What each name stands for; a name without addresses does not exist."""

    def __init__(self, port: int) -> None:
        """
        Args:
            port: where it listens.
        """
        self.port = port
        self.asked = 0
        """Questions so far."""
        self._addresses: dict[str, list[str]] = {}

    def set(self, name: str, addresses: Sequence[str]) -> None:
        """Has a name stand for IPv4 addresses from now on."""
        self._addresses[name] = list(addresses)

    def target(self, name: str, port: int) -> str:
        """The address that has a client ask here."""
        return f"dns://127.0.0.1:{self.port}/{name}:{port}"

    def answer(self, question: bytes) -> bytes:
        """One message for one message (RFC 1035)."""
        self.asked += 1
        number, *_ = _HEADER.unpack_from(question)
        labels, at = [], _HEADER.size
        while length := question[at]:
            labels.append(question[at + 1 : at + 1 + length].decode())
            at += 1 + length
        kind, _ = _QUESTION.unpack_from(question, at + 1)
        known = self._addresses.get(".".join(labels), [])
        addresses = known if kind == _A else []
        flags = _RESPONSE | (0 if known else _NO_SUCH_NAME)
        parts = [_HEADER.pack(number, flags, 1, len(addresses), 0, 0)]
        parts.append(question[_HEADER.size : at + 1 + _QUESTION.size])
        for address in addresses:
            packed = ipaddress.IPv4Address(address).packed
            head = _ANSWER.pack(_POINTER_TO_QUESTION, _A, _INTERNET, 0, len(packed))
            parts.append(head + packed)
        return b"".join(parts)


@contextmanager
def name_server() -> Iterator[Names]:
    """Answers until the block ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        names = Names(listening.getsockname()[1])
        thread = threading.Thread(target=_serve, args=(listening, names), daemon=True)
        thread.start()
        try:
            yield names
        finally:
            listening.sendto(b"", listening.getsockname())  # the word to end
            thread.join()


def _serve(listening: socket.socket, names: Names) -> None:
    while True:
        question, peer = listening.recvfrom(512)
        if not question:
            return
        listening.sendto(names.answer(question), peer)
