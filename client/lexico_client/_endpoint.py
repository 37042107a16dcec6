"""Where a service is, how the way there is secured, and who is calling."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from lexico_proto.errors import ConfigurationError

Options = Sequence[tuple[str, Any]]

_PLACE: Final = r"(?:\[[^\s/,\[\]]+\]|[^\s:/,\[\]]+):(\d{1,5})"
_ADDRESS: Final = re.compile(
    rf"unix:.+|(?:dns:(?://[^\s/]*/)?)?{_PLACE}|ipv[46]:{_PLACE}(?:,{_PLACE})*", re.DOTALL
)
_PORT: Final = re.compile(r":(\d+)(?=,|$)")


class Security(Protocol):
    """How channels are secured. Hashable: endpoints with the same address and equal security share
    a channel.
    """

    def state(self) -> Hashable:
        """What a channel that is made now is secured with. Once this differs from what it was when
        a channel was made, later calls get a new one: certificates can be replaced while the client
        runs. Asked before each call, so it should be quick.
        """

    def channel(
        self,
        address: str,
        options: Options,
        interceptors: Sequence[grpc.aio.ClientInterceptor],
    ) -> grpc.aio.Channel:
        """A new channel to an address as in `Endpoint`; it need not be connected.

        Raises:
            ConfigurationError: what secures it cannot be read or used.
        """


@dataclass(frozen=True)
class Plaintext:
    """No encryption: for loopback, and networks that keep others out."""

    def state(self) -> Hashable:
        """Always the same."""
        return None

    def channel(
        self,
        address: str,
        options: Options,
        interceptors: Sequence[grpc.aio.ClientInterceptor],
    ) -> grpc.aio.Channel:
        """An insecure channel."""
        return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)


@dataclass(frozen=True)
class Endpoint:
    """A service as a client reaches it.

    Raises:
        ConfigurationError: an address or token that cannot be used; the token is not shown.
    """

    address: str
    """`host:port`, `unix:path`, `dns:///host:port`, `dns://SERVER[:PORT]/host:port` where a name
    server of one's own is to be asked, or a list, `ipv4:IP:PORT,IP:PORT` or `ipv6:[IP]:PORT,...`.

    Where a host has several addresses, or a list names several, calls go to all of them in turn.
    The name is looked up again whenever a connection ends.
    """
    token: str | None = field(default=None, repr=False)
    """Bearer token that names the tenant."""
    security: Security = Plaintext()

    def __post_init__(self) -> None:
        check_address("address", self.address)
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise ConfigurationError("the token holds what no token can: a line's end, perhaps")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call carries."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)


def endpoint_of(
    name: str, given: str | Endpoint, token: str | None, security: Security | None = None
) -> Endpoint:
    """The endpoint that an argument stands for.

    Args:
        name: of the argument, for messages.
        given: an address, or the endpoint itself.
        token: what was given beside it, for every endpoint that has none of its own.
        security: the same, for every endpoint that is plaintext.

    Raises:
        ConfigurationError: an address that cannot be used, or a token or security in both places.
    """
    if not isinstance(given, Endpoint):
        check_address(name, given)
        return Endpoint(given, token, security or Plaintext())
    if token is not None and given.token is not None:
        raise ConfigurationError(f"give one token: in token=, or in the endpoint of {name}=")
    if security is not None and given.security != Plaintext():
        raise ConfigurationError(f"give TLS once: in tls=, or in the endpoint of {name}=")
    token = given.token if token is None else token
    return Endpoint(given.address, token, security or given.security)


def check_address(name: str, address: str) -> None:
    """Whether gRPC can look the address up.

    Raises:
        ConfigurationError: it is none of the forms of `Endpoint.address`.
    """
    ports = [] if address.startswith("unix:") else _PORT.findall(address)
    if not _ADDRESS.fullmatch(address) or not all(0 < int(port) < 1 << 16 for port in ports):
        raise ConfigurationError(
            f"{name}={address!r}: an address is host:port or unix:path; dns:///host:port and "
            "ipv4:IP:PORT,IP:PORT for several servers"
        )
