"""`kv_connector_extra_config`: where the service is, what pages are made of, and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Final

from lexico_client._async_client import AsyncClient
from lexico_client._endpoint import check_address
from lexico_client._settings import Timeouts
from lexico_client._tls import Tls
from lexico_client._transport import Transport
from lexico_codec.limits import MAX_PAGE_TOKENS
from lexico_codec.spec import DEFAULT_PAGE_TOKENS, DEFAULT_RECENT_TOKENS, salt_bytes
from lexico_proto.errors import ConfigurationError, InvalidInput, LexicoError
from lexico_proto.limits import DIGEST_BYTES

WHERE: Final = "kv_connector_extra_config"
_MAX_TOKEN_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class ConnectorConfig:
    """Checked settings of the connector.

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
    page_tokens: int = DEFAULT_PAGE_TOKENS
    """Tokens a page. Nodes that share pages agree on it; block sizes may differ."""
    recent_tokens: int = DEFAULT_RECENT_TOKENS
    """Newest tokens of a prompt that are computed in any case, where the codec is lossy."""
    weights: str | None = None
    """Fingerprint of the weights as hex, in place of hashing the model's files."""
    salt: str = ""
    """Whatever else pages shall be kept apart by; a request's cache salt is added to it."""
    min_load_tokens: int = 1
    """Fewest tokens that are worth a load."""
    match_seconds: float = Timeouts.match
    load_seconds: float = Timeouts.load
    idle_seconds: float = Timeouts.idle
    offload_seconds: float = Timeouts.offload
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
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), field.default)
        if not self.reload:
            raise _bad("reload", "missing: give the reload server's host:port")
        for key in ("reload", "offload"):
            if (address := getattr(self, key)) is not None:
                _told(key, check_address, key, address)
        for key, least, most in (
            ("page_tokens", 1, MAX_PAGE_TOKENS),
            ("recent_tokens", 1, None),
            ("min_load_tokens", 1, None),
            ("staging_bytes", 0, None),
            ("concurrent_loads", 1, 64),
            ("concurrent_stores", 1, 64),
            ("threads", 1, 64),
        ):
            if getattr(self, key) < least or (most is not None and getattr(self, key) > most):
                upto = "" if most is None else f"..{most}"
                raise _bad(key, f"{getattr(self, key)} is outside {least}{upto}")
        for key in ("match", "load", "idle", "offload", "drain"):
            if not 0 < getattr(self, f"{key}_seconds") < float("inf"):
                raise _bad(f"{key}_seconds", "a positive number of seconds is needed")
        _told("salt", salt_bytes, self.salt)
        if self.weights is not None:
            self.weights_digest()

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> ConnectorConfig:
        """The settings of a mapping, as JSON gives it.

        Raises:
            ConfigurationError: an unknown key, or a value that cannot be used.
        """
        known = [field.name for field in fields(cls)]
        for key in extra:
            if key not in known:
                raise _bad(str(key), f"unknown; there are {', '.join(known)}")
        return cls(**extra)

    def weights_digest(self) -> bytes | None:
        """The fingerprint that was given."""
        if self.weights is None:
            return None
        return digest_of("weights", self.weights)

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
        security: Tls = _told("tls_ca, tls_certificate, tls_key", Tls, *given)
        return security

    def _token(self) -> str | None:
        if self.token_file is None:
            return None
        try:
            with Path(self.token_file).open("rb") as opened:
                text = opened.read(_MAX_TOKEN_BYTES).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise _bad("token_file", f"{self.token_file} cannot be read ({error})") from error
        if not text:
            raise _bad("token_file", f"{self.token_file} is empty, and should hold the token")
        return text


def digest_of(key: str, text: str) -> bytes:
    """A digest that was given as hex.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        digest = bytes.fromhex(text)
    except ValueError as error:
        raise _bad(key, f"{text!r} is no digest as hex") from error
    if len(digest) != DIGEST_BYTES:
        raise _bad(key, f"{len(digest)} bytes, a digest has {DIGEST_BYTES}")
    return digest


def _check_type(key: str, value: object, default: object) -> None:
    kind: type | tuple[type, ...]
    if key == "codec_config":
        kind, named, optional = Mapping, "an object", True
    elif isinstance(default, bool):
        kind, named, optional = bool, "true or false", False
    elif isinstance(default, float):
        kind, named, optional = (int, float), "a number", False
    elif isinstance(default, int):
        kind, named, optional = int, "an integer", False
    else:
        kind, named, optional = str, "text", default is None
    if default is MISSING or (value is None and optional):
        return
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _bad(key, f"{value!r}: {named} is needed")


def _told(key: str, check: Any, *args: Any) -> Any:
    """What `check` gives; what it raises names the key."""
    try:
        return check(*args)
    except (ConfigurationError, InvalidInput) as error:
        raise _bad(key, error.message) from error


def _bad(key: str, why: str) -> LexicoError:
    return ConfigurationError(f"{WHERE}: {key}: {why}")
