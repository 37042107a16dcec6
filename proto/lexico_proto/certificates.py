"""Certificates, keys and authorities in PEM files: what is checked before gRPC gets them.

gRPC itself says of a file that it cannot use that a port cannot be bound, or that a handshake
failed; here it is said which file is wrong, and how. Needs the extra `tls`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lexico_proto.errors import ConfigurationError

if TYPE_CHECKING:
    from cryptography import x509

_INSTALL = "TLS needs cryptography: pip install 'lexico-offload[tls]'"


@dataclass(frozen=True)
class Pair:
    """A certificate with those that vouch for it, and its key: each as PEM."""

    chain: bytes
    key: bytes = field(repr=False)
    end: int
    """When the certificate ends, in Unix time."""


def read_pair(chain_file: Path, key_file: Path, chain: bytes, key: bytes) -> Pair:
    """A certificate and its key, checked.

    Args:
        chain_file: name of the file of the chain, the certificate first, for messages.
        key_file: name of the file of the key.
        chain: its bytes.
        key: its bytes.

    Raises:
        ConfigurationError: one of them is no PEM of its kind, the certificate is not valid now, or
            the key is not its own: perhaps only one of the two was replaced so far.
    """
    certificate = _certificates(chain_file, chain)[0]
    _check_time(chain_file, certificate)
    try:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        private = load_pem_private_key(key, password=None)
    except TypeError as error:
        raise ConfigurationError(f"key {key_file}: needs a passphrase: give one without") from error
    except Exception as error:
        raise ConfigurationError(f"key {key_file}: is no private key in PEM") from error
    if private.public_key() != certificate.public_key():
        raise ConfigurationError(f"key {key_file}: is not the key of {chain_file}")
    return Pair(chain, key, int(certificate.not_valid_after_utc.timestamp()))


def check_authorities(file: Path, data: bytes) -> bytes:
    """The bytes of a file of authorities, once they are some.

    Raises:
        ConfigurationError: it holds no certificate, or one that cannot be read.
    """
    _certificates(file, data)
    return data


@dataclass(frozen=True)
class Names:
    """What a certificate says of whose it is."""

    uris: tuple[str, ...]
    hosts: tuple[str, ...]
    """DNS names, in small letters."""
    end: int
    """When it ends, in Unix time."""


def names_of(pem: bytes) -> Names:
    """The names in a peer's certificate.

    Args:
        pem: the certificate, as TLS has verified it.

    Raises:
        ConfigurationError: it cannot be read.
    """
    certificate = _certificates(Path("of the peer"), pem)[0]
    from cryptography import x509

    uris: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
        hosts = tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        pass
    except ValueError as error:
        raise ConfigurationError("the names of the peer's certificate cannot be read") from error
    return Names(uris, hosts, int(certificate.not_valid_after_utc.timestamp()))


def _certificates(file: Path, data: bytes) -> Sequence[x509.Certificate]:
    try:
        from cryptography import x509
    except ImportError as error:
        raise ConfigurationError(_INSTALL) from error
    try:
        found = x509.load_pem_x509_certificates(data)
        for each in found:  # read when asked for
            _ = each.public_key(), each.not_valid_after_utc
    except Exception as error:
        raise ConfigurationError(f"certificate {file}: is no certificate in PEM") from error
    return found


def _check_time(file: Path, certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    if now >= certificate.not_valid_after_utc:
        raise ConfigurationError(
            f"certificate {file}: ended at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"
        )
    if now < certificate.not_valid_before_utc:
        begin = certificate.not_valid_before_utc
        raise ConfigurationError(
            f"certificate {file}: begins at {begin:%Y-%m-%d %H:%M:%S} UTC; is the clock right?"
        )
