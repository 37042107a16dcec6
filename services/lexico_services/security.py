"""How the port of a server is secured. Its address and its tokens are in `ListenConfig`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import grpc

from lexico_proto.certificates import check_authorities, read_pair
from lexico_proto.metrics import CERTIFICATE_END, PROCESS, Metrics
from lexico_proto.watched import WatchedFiles
from lexico_services.door_config import TlsConfig


class Security(Protocol):
    """Binds ports. It is pickled on its way to an ingress: it names files and holds none."""

    def bind(self, server: grpc.aio.Server, target: str) -> int:
        """Has a server that is not started listen on `host:port`, and returns the port taken.

        Raises:
            RuntimeError: gRPC cannot bind it.
            ConfigurationError: what secures it cannot be read or used.
        """


@dataclass(frozen=True)
class Plaintext:
    """No encryption: for loopback, and networks that keep others out."""

    def bind(self, server: grpc.aio.Server, target: str) -> int:
        """An insecure port."""
        return server.add_insecure_port(target)


PLAINTEXT: Final = Plaintext()


@dataclass(frozen=True)
class Tls:
    """TLS, and with `client_ca` mutual TLS.

    The files are looked at again in each handshake, at most once a second, and a handshake after
    they have changed has the new ones. Connections that are open go on as they are. A pair of which
    one half is replaced is not taken: the former serves on.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def bind(self, server: grpc.aio.Server, target: str) -> int:
        """A port that speaks TLS alone."""
        files = self.files(PROCESS)
        served, configuration = files.numbered()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal served
            number, newest = files.numbered()
            if number == served:
                return None  # gRPC goes on with what it has
            served = number
            return newest

        credentials = grpc.dynamic_ssl_server_credentials(
            configuration,
            fetch,  # type: ignore[arg-type]  # the stubs do not know that None is allowed
            require_client_authentication=self.client_ca is not None,
        )
        return server.add_secure_port(target, credentials)

    def files(self, metrics: Metrics) -> WatchedFiles[grpc.ServerCertificateConfiguration]:
        """Its files, as gRPC takes them.

        Raises:
            ConfigurationError: one cannot be read or used.
        """
        paths = [self.certificate, self.key]
        paths += [self.client_ca] if self.client_ca is not None else []
        end = metrics.gauge(CERTIFICATE_END)

        def read(contents: Sequence[bytes]) -> grpc.ServerCertificateConfiguration:
            pair = read_pair(self.certificate, self.key, *contents[:2])
            authorities = None
            if self.client_ca is not None:
                authorities = check_authorities(self.client_ca, contents[2])
            end.set(pair.end)
            return grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)], authorities)

        return WatchedFiles("TLS file", paths, read, metrics)


def security_of(tls: TlsConfig) -> Security:
    """The security that the settings ask for. Reads no file yet."""
    if tls.certificate is None or tls.key is None:
        return PLAINTEXT
    return Tls(tls.certificate, tls.key, tls.client_ca)


def check_files(tls: TlsConfig) -> None:
    """Reads the files once, so that what is wrong with them is said before anything starts.

    Raises:
        ConfigurationError: one cannot be read or used.
    """
    security = security_of(tls)
    if isinstance(security, Tls):
        security.files(Metrics())
