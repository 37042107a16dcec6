"""TLS to the service, by files that may be replaced while the client runs."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from lexico_client._endpoint import Options
from lexico_proto.certificates import check_authorities, read_pair
from lexico_proto.errors import ConfigurationError
from lexico_proto.watched import WatchedFiles

StrPath = str | os.PathLike[str]

_Shown = tuple[bytes | None, bytes | None, bytes | None]
"""Authorities, key and chain. gRPC gets them when a channel is made: before a fork it must not be
touched.
"""


@dataclass(frozen=True)
class Tls:
    """How a client knows the service, and shows who it is itself.

    The files are looked at again once a second at most. A call after they have changed has a new
    connection with the new ones; earlier calls end on the old one. A pair of which one half is
    replaced is not taken, and the former goes on.

    Raises:
        ConfigurationError: a file that cannot be read or used, or half of a pair.
    """

    ca: StrPath | None = None
    """PEM: authorities that may vouch for the service; None for those that gRPC comes with."""
    certificate: StrPath | None = None
    """PEM: this node's certificate, then those that vouch for it, where the service asks."""
    key: StrPath | None = None
    """PEM: its private key, without a passphrase."""
    server_name: str | None = None
    """The name in the service's certificate, where it is not that of the address."""
    _files: WatchedFiles[_Shown] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError("Tls: certificate and key belong together: give both")
        if self.server_name == "":
            raise ConfigurationError("Tls: server_name is empty")
        given = [self.ca, self.certificate, self.key]
        paths = [Path(each) for each in given if each is not None]
        object.__setattr__(self, "_files", WatchedFiles("TLS file", paths, self._read))

    def state(self) -> Hashable:
        """A number for what the files say now."""
        return self._files.numbered()[0]

    def channel(
        self,
        address: str,
        options: Options,
        interceptors: Sequence[grpc.aio.ClientInterceptor],
    ) -> grpc.aio.Channel:
        """A secure channel."""
        if self.server_name is not None:
            options = (*options, ("grpc.ssl_target_name_override", self.server_name))
        credentials = grpc.ssl_channel_credentials(*self._files.now())
        return grpc.aio.secure_channel(
            address, credentials, options=options, interceptors=interceptors
        )

    def _read(self, contents: Sequence[bytes]) -> _Shown:
        left = list(contents)
        ca = None if self.ca is None else check_authorities(Path(self.ca), left.pop(0))
        if self.certificate is None or self.key is None:
            return ca, None, None
        pair = read_pair(Path(self.certificate), Path(self.key), *left)
        return ca, pair.key, pair.chain
