"""Connections to Redis that copy no large frame, hang on no call and meet no stale reply."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import hiredis
from redis import exceptions as redis_exceptions
from redis.backoff import NoBackoff
from redis.connection import (
    Connection,
    ConnectionPool,
    PythonRespSerializer,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.credentials import CredentialProvider
from redis.retry import Retry

from lexico_store.address import Address
from lexico_store.checks import Parts
from lexico_store.deadline import remaining_s
from lexico_store.redis_bulk import BulkReplies
from lexico_store.settings import StoreSettings

PACK_CUTOFF_BYTES: Final = 6000
"""Larger arguments are sent from where they are, smaller ones joined: redis-py's own figure."""
IDLE_S: Final = 60.0
"""A connection that rested longer is made anew. NAT tables and load balancers forget one after
minutes, the shortest of the clouds after four, and tell neither end."""

_READ_BYTES: Final = 1 << 20
_LEAST_WAIT_S: Final = 0.01


def build_pool(address: Address, settings: StoreSettings) -> ConnectionPool:
    """A pool for one server. Connects to nothing yet.

    Args:
        address: of a scheme that names one server; `pool_of` serves the others.
    """
    if address.scheme == "unix":
        options = connection_options(address, settings)
        return ConnectionPool(_UnixConnection, path=address.path, **options)
    return pool_of(address, settings, address.host, address.port)


def pool_of(address: Address, settings: StoreSettings, host: str, port: int) -> ConnectionPool:
    """A pool for the server at `host` and `port`, with the login and TLS of `address`."""
    kind = _TlsConnection if address.tls else _TcpConnection
    options = connection_options(address, settings)
    return ConnectionPool(kind, host=host, port=port, **options)


def connection_options(address: Address, settings: StoreSettings) -> dict[str, Any]:
    """redis-py's options of every connection to a server of this store."""
    options: dict[str, Any] = {
        "db": address.database,
        "username": address.username,
        "password": address.password,
        "max_connections": settings.max_connections,
        # RESP3 brings nothing here but a longer handshake and maintenance pushes that stretch the
        # timeouts.
        "protocol": 2,
        # hiredis's packer, the default, copies every argument (16 x 1 MiB: 34 ms against 8 ms);
        # this one passes memoryviews on to the socket. Short commands and replies are hiredis's.
        "command_packer": _Packer(PACK_CUTOFF_BYTES, _encode),
        "socket_read_size": _READ_BYTES,
        **transport_options(address, settings.timeout_s, settings.connect_timeout_s),
    }
    if "password_file" in address.options:
        del options["username"], options["password"]
        options["credential_provider"] = _PasswordFile(
            Path(address.options["password_file"]), address.username
        )
    return options


def transport_options(
    address: Address, timeout_s: float, connect_timeout_s: float
) -> dict[str, Any]:
    """Times and TLS, which sentinels share with the servers that they name."""
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        # redis-py retries up to ten times by default; `Servers` does it, within the deadline.
        "retry": Retry(NoBackoff(), 0),
    }
    if address.scheme != "unix":
        options["socket_keepalive"] = True
    if address.tls:
        options |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        options |= {k: v for k, v in address.options.items() if k.startswith("ssl_")}
    return options


class Remembering:
    """What a connection of ours knows of itself, beside redis-py's."""

    exchanges = 0
    """Answered since it was made: a silent connection that has answered before may be forgotten."""
    used_at = 0.0

    def connect(self) -> None:
        """Waits no longer than the caller of this thread: connecting takes several answers."""
        left = max(_LEAST_WAIT_S, remaining_s())
        own: Any = self
        patience = own.socket_timeout, own.socket_connect_timeout
        own.socket_timeout = min(patience[0], left)
        own.socket_connect_timeout = min(patience[1], left)
        try:
            super().connect()  # type: ignore[misc]
        finally:
            own.socket_timeout, own.socket_connect_timeout = patience

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """Forgets, too."""
        self.exchanges = 0
        super().disconnect(*args, **kwargs)  # type: ignore[misc]

    def bulk_replies(self) -> BulkReplies:
        """Reads what one exchange brings past redis-py's parser, which must owe nothing."""
        own: Any = self

        def receive(into: memoryview) -> int:
            if own._sock is None:
                raise redis_exceptions.ConnectionError("the connection is closed")
            try:
                received: int = own._sock.recv_into(into)
            except TimeoutError as error:
                raise redis_exceptions.TimeoutError("the server does not answer") from error
            except OSError as error:
                raise redis_exceptions.ConnectionError(f"reading failed: {error}") from error
            return received

        return BulkReplies(receive, own._parser.parse_error)

    def answered(self) -> None:
        """To be called once an exchange has its last reply."""
        self.exchanges += 1
        self.used_at = time.monotonic()

    @property
    def rested(self) -> bool:
        """Whether it was idle for so long that it is not to be trusted."""
        return self.exchanges > 0 and time.monotonic() - self.used_at > IDLE_S


class _TcpConnection(Remembering, Connection):
    pass


class _TlsConnection(Remembering, SSLConnection):
    pass


class _UnixConnection(Remembering, UnixDomainSocketConnection):
    pass


class _PasswordFile(CredentialProvider):
    """Reads the password for each new connection, so that it can be rotated."""

    def __init__(self, path: Path, username: str | None) -> None:
        self._path = path
        self._username = username

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            password = self._path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise redis_exceptions.AuthenticationError(
                f"cannot read {self._path}: {error}"
            ) from error
        return (password,) if self._username is None else (self._username, password)


class LongValue:
    """One argument in several buffers, over `PACK_CUTOFF_BYTES` in all."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._size = sum(part.nbytes for part in parts)

    def __len__(self) -> int:
        return self._size


class _Packer(PythonRespSerializer):
    """redis-py puts arguments over the cutoff among its output as they are; here they are taken
    apart. Commands without any are left to hiredis: a match has thousands of them."""

    def pack(self, *args: Any) -> list[bytes | memoryview]:
        if LongValue not in map(type, args) and " " not in args[0]:  # which would be two arguments
            return [hiredis.pack_command(args)]
        packed = super().pack(*args)  # type: ignore[no-untyped-call]
        return [
            part
            for chunk in packed
            for part in (chunk.parts if isinstance(chunk, LongValue) else (chunk,))
        ]


def _encode(value: bytes | LongValue | str | int) -> bytes | LongValue:
    if isinstance(value, bytes | LongValue):
        return value
    return str(value).encode()
