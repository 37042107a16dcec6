"""How commands reach servers: addresses, token and TLS, once for all of them."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from lexico_client._channels import Channels
from lexico_client._endpoint import Endpoint, Plaintext, Security, check_address
from lexico_client._errors import translated
from lexico_client._settings import Timeouts, check_seconds
from lexico_client._sync_client import Client
from lexico_client._tls import Tls
from lexico_proto import request_id
from lexico_proto.errors import ConfigurationError, LexicoError
from lexico_proto.v1.admin_pb2_grpc import AdminStub

T = TypeVar("T")

RELOAD: Final = ("--reload", "LEXICO_RELOAD", "127.0.0.1:7412")
OFFLOAD: Final = ("--offload", "LEXICO_OFFLOAD", "127.0.0.1:7411")
"""Option, environment variable, and what counts where neither is given."""
TOKEN_VARIABLE: Final = "LEXICO_TOKEN"
MAX_TOKEN_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class Connection:
    """The servers of one command."""

    reload: tuple[Endpoint, ...]
    """Reload servers; most commands take one."""
    offload: tuple[Endpoint, ...]
    timeout: float
    """Longest wait for an answer, in seconds."""

    @classmethod
    def of(cls, options: argparse.Namespace) -> Connection:
        """As options and environment have it.

        Raises:
            ConfigurationError: an address, token, file or time that cannot be used.
        """
        token, security = _token(options.bearer_file), _security(options)

        def endpoints(given: object, names: tuple[str, str, str]) -> tuple[Endpoint, ...]:
            option, variable, usual = names
            if not given:
                given = os.environ.get(variable) or usual
            addresses = given if isinstance(given, list) else [str(given)]
            for address in addresses:
                check_address(option, address)
            return tuple(Endpoint(address, token, security) for address in addresses)

        return cls(
            endpoints(options.reload, RELOAD),
            endpoints(getattr(options, "offload", None), OFFLOAD),
            check_seconds("--timeout", options.timeout),
        )

    def client(self) -> Client:
        """A client of the first of each. A command waits as long as it was told to."""
        seconds = self.timeout
        timeouts = Timeouts(seconds, seconds, seconds, seconds, seconds)
        return Client(reload=self.reload[0], offload=self.offload[0], timeouts=timeouts)

    def admin(self, method: str, request: object) -> Any:
        """What the reload server answers to a call of Admin.

        Raises:
            LexicoError: what it refused, or that it is not there; the message names it.
        """

        async def asked() -> Any:
            async with Callers(self.timeout) as callers:
                return await callers.ask(self.reload[0], AdminStub, method, request)

        return asyncio.run(asked())


class Callers:
    """Makes unary calls, for one event loop."""

    def __init__(self, timeout: float) -> None:
        """
        Args:
            timeout: longest wait for an answer, in seconds.
        """
        self._timeout = timeout
        self._channels = Channels()

    async def __aenter__(self) -> Callers:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channels.close()

    async def ask(
        self, endpoint: Endpoint, stub: Callable[[Any], Any], method: str, request: object
    ) -> Any:
        """The answer of one server.

        Args:
            endpoint: of the server.
            stub: the generated class of the service.
            method: of it, such as `Usage`.
            request: its message.

        Raises:
            LexicoError: what it refused, or that it is not there; the message names it.
        """
        call: Callable[..., Awaitable[Any]]
        call = getattr(stub(self._channels.to(endpoint)), method)
        metadata = (*endpoint.metadata, (request_id.METADATA_KEY, request_id.made()))
        try:
            with translated(method):
                return await call(request, timeout=self._timeout, metadata=metadata)
        except LexicoError as error:
            named = type(error)(f"{endpoint.address}: {error.message}")
            named.request_id = error.request_id
            raise named from error


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_TOKEN_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"--bearer-file {file}: cannot read ({why})") from error
    if not text:
        raise ConfigurationError(f"--bearer-file {file}: it is empty, and should hold the token")
    return text


def _security(options: argparse.Namespace) -> Security:
    given = (options.tls_ca, options.tls_certificate, options.tls_key, options.tls_server_name)
    if not options.tls and all(each is None for each in given):
        return Plaintext()
    if (options.tls_certificate is None) is not (options.tls_key is None):
        raise ConfigurationError("--tls-certificate and --tls-key go together")
    return Tls(*given)
