"""Who is calling, and what they may do: never by a message, always by what they show beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from lexico_proto.errors import PermissionDenied, Unauthenticated
from lexico_proto.metrics import PROCESS, Metrics
from lexico_services.caller import Caller, Metadata, Peer
from lexico_services.certificate_names import CertificateNames
from lexico_services.config import ListenConfig
from lexico_services.roles import ROLES, USUAL
from lexico_services.token_file import TokenFile

DEFAULT_TENANT: Final = "default"


class CallContext(Protocol):
    """As much of a gRPC context as is needed here."""

    def invocation_metadata(self) -> Metadata: ...

    def auth_context(self) -> Peer: ...


class OfToken(Protocol):
    """Knows callers by the text after `Bearer`."""

    def caller(self, token: str) -> Caller | None:
        """None where the token is none of this kind, so that the next kind may be asked.

        Raises:
            Unauthenticated: it is of this kind and not in force.
        """

    def names(self) -> set[str]:
        """The tenants that are known beforehand."""


class OfPeer(Protocol):
    """Knows callers by their connection."""

    def caller(self, peer: Peer) -> Caller:
        """
        Raises:
            Unauthenticated: nobody is known by this name.
        """


class Tenants:
    """Knows callers by what they show. A token counts where there is one, even with a certificate
    beside it.
    """

    def __init__(
        self,
        tokens: Iterable[OfToken] = (),
        certificates: OfPeer | None = None,
        anonymous: Caller | None = None,
    ) -> None:
        """
        Args:
            tokens: kinds of tokens, asked in this order.
            certificates: who clients are by their certificates.
            anonymous: who everybody is where nothing else is given; by default the tenant
                `default` with the usual roles.
        """
        self._tokens = tuple(tokens)
        self._certificates = certificates
        known = self._tokens or certificates is not None
        self._everybody = None if known else anonymous or Caller(DEFAULT_TENANT)

    @classmethod
    def of(cls, listen: ListenConfig, metrics: Metrics = PROCESS) -> Tenants:
        """Tenants as the settings have it.

        Raises:
            ConfigurationError: a file that cannot be read or used.
        """
        tokens: list[OfToken] = []
        if listen.token_file is not None:
            tokens.append(TokenFile(listen.token_file, metrics))
        if listen.jwt.keys is not None:
            from lexico_services.json_web_tokens import JsonWebTokens  # needs an extra

            tokens.append(JsonWebTokens(listen.jwt, metrics))
        certificates: OfPeer | None = None
        if listen.tls.tenants_file is not None:
            certificates = CertificateNames(listen.tls.tenants_file, metrics)
        # Whoever is on the machine is its operator; whoever is on the network is not.
        roles = ROLES if listen.is_loopback else USUAL
        return cls(tokens, certificates, Caller(DEFAULT_TENANT, roles))

    def names(self) -> set[str]:
        """The tenants that are known before they call: issuers and authorities name others."""
        if self._everybody is not None:
            return {self._everybody.tenant}
        return {name for kind in self._tokens for name in kind.names()}

    def admit(self, context: CallContext, *roles: str) -> Caller:
        """The caller, who has one of `roles`.

        Raises:
            Unauthenticated: nobody is known by what the caller shows.
            PermissionDenied: the caller has none of the roles.
        """
        caller = self.caller_of(context.invocation_metadata(), context.auth_context)
        if caller.roles.isdisjoint(roles):
            raise PermissionDenied(f"this call needs the role {' or '.join(roles)}")
        return caller

    def caller_of(self, metadata: Metadata, peer: Callable[[], Peer] | None = None) -> Caller:
        """The caller, whatever the roles.

        Args:
            metadata: of the call.
            peer: gives what the connection says; asked only where a certificate counts.

        Raises:
            Unauthenticated: nobody is known by what the caller shows.
        """
        if self._everybody is not None:
            return self._everybody
        given = next((value for key, value in metadata or () if key == "authorization"), None)
        if given is None:
            if self._certificates is not None and peer is not None:
                return self._certificates.caller(peer())
            raise _unknown()
        text = given.decode(errors="replace") if isinstance(given, bytes) else given
        scheme, _, token = text.partition(" ")
        if scheme.lower() == "bearer":
            for kind in self._tokens:
                caller = kind.caller(token)
                if caller is not None:
                    return caller
        raise _unknown()


def _unknown() -> Unauthenticated:
    return Unauthenticated("no tenant for this token: send 'authorization: Bearer <token>'")
