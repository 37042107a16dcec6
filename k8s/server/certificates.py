"""Certificates of one run: an authority, the servers, and who may do anything with them."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFE: Final = timedelta(days=1)
_ADDRESS: Final = ipaddress.ip_address("127.0.0.1")


class Certificates:
    """Files of an authority's own making, for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        """Writes them.

        Args:
            folder: of the caller's alone: it holds keys.
        """
        self.authority = folder / "ca.pem"
        self.server = folder / "server.pem"
        self.server_key = folder / "server.key"
        self.admin = folder / "admin.pem"
        """Of the group that every API server lets do everything."""
        self.admin_key = folder / "admin.key"
        self.accounts_key = folder / "accounts.key"
        """Signs the tokens of service accounts."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named("authority")
        made = self._builder(self._name, self._key.public_key())
        made = made.add_extension(x509.BasicConstraints(True, None), True)
        self._write(made, self.authority)
        self._issue("server", "", self.server, self.server_key)
        self._issue("admin", "system:masters", self.admin, self.admin_key)
        _write_key(ec.generate_private_key(ec.SECP256R1()), self.accounts_key)

    def _issue(self, name: str, group: str, certificate: Path, file: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        made = (
            self._builder(_named(name, group), key.public_key())
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(_ADDRESS)]), False)
            .add_extension(x509.ExtendedKeyUsage(both), False)
        )
        self._write(made, certificate)
        _write_key(key, file)

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + _LIFE)
        )

    def _write(self, made: x509.CertificateBuilder, file: Path) -> None:
        file.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))


def _named(name: str, group: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if group:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(attributes)


def _write_key(key: ec.EllipticCurvePrivateKey, file: Path) -> None:
    file.touch(0o600)
    shape = PrivateFormat.TraditionalOpenSSL
    file.write_bytes(key.private_bytes(Encoding.PEM, shape, NoEncryption()))
