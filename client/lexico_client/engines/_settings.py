"""Settings that every adapter has: where the service is, how pages are coded, and bounds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lexico_client._async_client import AsyncClient
from lexico_client._coding import checked_without_set
from lexico_client._endpoint import check_address
from lexico_client._settings import Timeouts
from lexico_client._tls import Tls
from lexico_client._transport import Transport
from lexico_client.engines._checked import CheckedSettings
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import salt_bytes

_MAX_TOKEN_BYTES: Final = 1 << 16
_MAX_SECONDS: Final = 1e6
"""Of a deadline: eleven days. Clocks of libraries below run over with numbers that mean never."""


@dataclass(frozen=True)
class EngineSettings(CheckedSettings):
    """Checked settings of an adapter; an engine's own are added in a class below this.

    Raises:
        ConfigurationError: one line that names the key.
    """

    reload: str = ""
    """Address of the reload server: where pages are matched and loaded."""
    offload: str | None = None
    """Address of the ingress; without it nothing is stored."""
    token_file: str | None = None
    """File with the bearer token that names the tenant; read at start."""
    tls: bool = False
    """Whether the service is reached by TLS; any of the next four means it too."""
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_server_name: str | None = None
    codec: str = "balanced"
    """Preset or codec."""
    codec_config: Mapping[str, Any] | None = None
    """Parameters of a codec; a preset has its own."""
    dictionary: str | None = None
    """File of a dictionary set, or its digest as hex where it is registered."""
    without_set: str = "lossless"
    """While there is no set for the model: share its pages lossless, or `refuse` to start."""
    weights: str | None = None
    """Fingerprint of the weights as hex, in place of hashing the model's files."""
    salt: str = ""
    """Whatever else pages shall be kept apart by; a request's cache salt is added to it."""
    match_seconds: float = Timeouts.match
    load_seconds: float = Timeouts.load
    idle_seconds: float = Timeouts.idle
    offload_seconds: float = Timeouts.offload
    sets_seconds: float = Timeouts.sets
    """Between two questions for the set of a model that has none, about."""
    drain_seconds: float = 10.0
    """How long a worker that ends waits for pages that are on their way."""
    staging_bytes: int = 1 << 30
    """Most bytes of copies of pages that wait to be stored; what does not fit is not stored."""
    concurrent_loads: int = 4
    """Loads at a time; others wait, within `load_seconds`."""
    concurrent_stores: int = 2
    threads: int = 2
    """Threads that decode and read memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.reload:
            raise self._bad("reload", "missing: give the reload server's host:port")
        for key in ("reload", "offload"):
            if (address := getattr(self, key)) is not None:
                self._told(key, check_address, key, address)
        for key, most in (
            ("staging_bytes", None),
            ("concurrent_loads", 64),
            ("concurrent_stores", 64),
            ("threads", 64),
        ):
            self._check_range(key, 0 if key == "staging_bytes" else 1, most)
        for key in ("match", "load", "idle", "offload", "sets", "drain"):
            self._check_seconds(f"{key}_seconds")
        self._told("salt", salt_bytes, self.salt)
        self._told("without_set", checked_without_set, self.without_set)
        if self.weights is not None:
            self.weights_digest()

    def _check_seconds(self, key: str) -> None:
        if not 0 < getattr(self, key) <= _MAX_SECONDS:
            raise self._bad(
                key, f"a positive number of seconds is needed, {_MAX_SECONDS:.0f} at most"
            )

    def weights_digest(self) -> bytes | None:
        """The fingerprint that was given."""
        if self.weights is None:
            return None
        return self.digest_of("weights", self.weights)

    def client(self, transport: Transport | None = None) -> AsyncClient:
        """A client of the service; connects nothing yet.

        Raises:
            ConfigurationError: naming the key.
        """
        timeouts = Timeouts(
            match=self.match_seconds,
            load=self.load_seconds,
            idle=self.idle_seconds,
            offload=self.offload_seconds,
            sets=self.sets_seconds,
        )
        if transport is not None:
            return AsyncClient(transport=transport, timeouts=timeouts, threads=self.threads)
        return AsyncClient(
            reload=self.reload,
            offload=self.offload,
            token=self._token(),
            timeouts=timeouts,
            threads=self.threads,
            tls=self._security(),
        )

    def _security(self) -> Tls | None:
        given = (self.tls_ca, self.tls_certificate, self.tls_key, self.tls_server_name)
        if not self.tls and all(each is None for each in given):
            return None
        security: Tls = self._told("tls_ca, tls_certificate, tls_key", Tls, *given)
        return security

    def _token(self) -> str | None:
        if self.token_file is None:
            return None
        try:
            with Path(self.token_file).open("rb") as opened:
                text = opened.read(_MAX_TOKEN_BYTES).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise self._bad("token_file", f"{self.token_file} cannot be read ({error})") from error
        if not text:
            raise self._bad("token_file", f"{self.token_file} is empty, and should hold the token")
        return text

    def dictionary_given(self) -> DictionarySet | bytes | None:
        """The dictionary set that was given: itself, or the digest of one that is registered.

        Raises:
            ConfigurationError: it is neither.
            LexicoError: the file is no set.
        """
        if self.dictionary is None:
            return None
        if os.path.isfile(self.dictionary):
            return DictionarySet.load(self.dictionary)
        return self.digest_of("dictionary", self.dictionary)
