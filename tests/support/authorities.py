"""Authorities and certificates of a test's own, as files."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

LOCAL = ("localhost", "127.0.0.1")

_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, as PEM."""

    chain: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Its files."""
        chain, key = folder / f"{name}.pem", folder / f"{name}.key"
        chain.write_bytes(self.chain)
        key.write_bytes(self.key)
        return chain, key


@dataclass
class Authority:
    """Makes certificates."""

    name: str = "authority"
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    @property
    def pem(self) -> bytes:
        """Its own certificate."""
        names = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        made = _builder(names, names, self.key.public_key(), timedelta(days=1))
        made = made.add_extension(x509.BasicConstraints(True, None), True)
        made = made.add_extension(_SIGNS, True)
        made = made.add_extension(self._identifier, False)
        return made.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)

    @property
    def _identifier(self) -> x509.SubjectKeyIdentifier:
        """Python 3.13 insists on it in both certificates, as RFC 5280 does."""
        return x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())

    def write(self, folder: Path) -> Path:
        """Its file."""
        file = folder / f"{self.name}.pem"
        file.write_bytes(self.pem)
        return file

    def issue(
        self,
        hosts: Iterable[str] = LOCAL,
        uris: Iterable[str] = (),
        lasts: timedelta = timedelta(hours=1),
    ) -> Issued:
        """A certificate for these names, that ends after this time; less than none: has ended."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [_host(host) for host in hosts]
        names += [x509.UniformResourceIdentifier(uri) for uri in uris]
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
        made = _builder(subject, issuer, key.public_key(), lasts)
        made = made.add_extension(x509.BasicConstraints(False, None), True)
        issued_by = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier)
        made = made.add_extension(issued_by, False)
        if names:
            made = made.add_extension(x509.SubjectAlternativeName(names), False)
        pem = made.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Issued(pem, secret)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lasts: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + lasts)
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
