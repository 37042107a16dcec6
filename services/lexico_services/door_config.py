"""Settings of who may come in, and how the way there is secured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lexico_proto.errors import ConfigurationError


@dataclass(frozen=True)
class TlsConfig:
    """Files of TLS, all PEM. They are read again when they change.

    Raises:
        ConfigurationError: one that needs another is given without it.
    """

    certificate: Path | None = None
    """Certificate of both ports, then those that vouch for it. With `key`: TLS alone is spoken."""
    key: Path | None = None
    """Its private key, without a passphrase."""
    client_ca: Path | None = None
    """Authorities of clients. With it, each client must show a certificate of theirs."""
    tenants_file: Path | None = None
    """Lines of `NAME TENANT [ROLES]`: who a client is, by a URI or DNS name of its certificate."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError("tls: certificate and key belong together: give both")
        if self.client_ca is not None and self.certificate is None:
            raise ConfigurationError("tls: client_ca needs certificate and key")
        if self.tenants_file is not None and self.client_ca is None:
            raise ConfigurationError(
                "tls: tenants_file needs client_ca, which asks clients for certificates"
            )


@dataclass(frozen=True)
class JwtConfig:
    """JSON Web Tokens that name the tenant. Needs the extra `jwt`.

    Raises:
        ConfigurationError: keys without issuer and audience, or a claim without a name.
    """

    keys: Path | None = None
    """JSON Web Key Set with public keys; read again when it changes. Nothing is fetched."""
    issuer: str | None = None
    """What `iss` must be."""
    audience: str | None = None
    """What `aud` must be, or have among others."""
    tenant_claim: str = "tenant"
    """Claim that names the tenant; a slash leads into it: `kubernetes.io/namespace`."""
    roles_claim: str = "roles"
    """Claim with roles, as a list or a text with spaces; without it, a token has the usual ones."""

    def __post_init__(self) -> None:
        if not self.tenant_claim or not self.roles_claim:
            raise ConfigurationError("jwt: tenant_claim and roles_claim must have names")
        others = (self.issuer, self.audience)
        if self.keys is not None and not all(others):
            raise ConfigurationError(
                "jwt: keys need issuer and audience, or tokens made for other services would do"
            )
        if self.keys is None and any(others):
            raise ConfigurationError("jwt: issuer and audience mean nothing without keys")
