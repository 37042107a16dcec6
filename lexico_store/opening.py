"""From a URL to a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from lexico_proto.errors import ConfigurationError
from lexico_store.address import Address, parse_address, parse_bytes
from lexico_store.embedded import EmbeddedServer, check_start, default_maxmemory
from lexico_store.memory import DEFAULT_MAX_BYTES, MemoryStore
from lexico_store.settings import StoreSettings
from lexico_store.store import PageStore


def open_store(url: str, settings: StoreSettings | None = None) -> PageStore:
    """The store at `url`. A server that runs elsewhere is not spoken to yet: `ping` does that.

        memory://                   this process alone; ?maxmemory=1gb
        embedded://                 a server started as our child, gone when the store is closed;
                                    ?maxmemory=2gb &server=auto, path, wheel or /path/of/binary
        embedded:///dir             the same, its socket and log in /dir
        redis://user:password@host:6379/0   Redis or Valkey
        rediss://...                the same over TLS; ?ssl_ca_certs= &ssl_certfile= &ssl_keyfile=
        unix:///path.sock?db=0      Redis or Valkey on a unix socket; unix://:password@/path.sock
        redis+sentinel://user:password@host:26379,host2/service/0
                                    the primary of a service; ?sentinel_username=
                                    &sentinel_password=
        redis+cluster://user:password@host:6379,host2
                                    Redis Cluster; the others are found by the nodes that are named
        rediss+sentinel://..., rediss+cluster://...
                                    the same over TLS, sentinels too

    Every scheme with a password takes ?password_file= instead, read for each new connection.

    Raises:
        ConfigurationError: the URL cannot be used, or a package or binary that it needs is not
            installed.
        StoreUnavailable: an embedded server does not start.
    """
    address = parse_address(url, _OPTIONS)
    return _BUILDERS[address.scheme](address, settings or StoreSettings())


def _open_memory(address: Address, _: StoreSettings) -> PageStore:
    address.path_refused("memory://?maxmemory=1gb")
    bound = address.options.get("maxmemory")
    return MemoryStore(parse_bytes(bound, "maxmemory") if bound else DEFAULT_MAX_BYTES)


def start_embedded(url: str, settings: StoreSettings) -> EmbeddedServer:
    """Starts the server that an `embedded://` URL describes.

    Raises:
        ConfigurationError, StoreUnavailable: see `open_store`.
    """
    return _start(parse_address(url, _OPTIONS), settings)


def embedded_maxmemory(url: str) -> int:
    """Bytes that the server of an `embedded://` URL may grow to.

    Raises:
        ConfigurationError: the URL cannot be used.
    """
    return _maxmemory(parse_address(url, _OPTIONS))


def check_embedded(url: str) -> Path:
    """What a start of an `embedded://` URL would refuse, without one.

    Returns:
        The server binary that it would take.

    Raises:
        ConfigurationError: the URL, its folder or its server cannot be used.
    """
    address = parse_address(url, _OPTIONS)
    _maxmemory(address)
    return check_start(_directory(address), address.options.get("server", "auto"))


def _maxmemory(address: Address) -> int:
    bound = address.options.get("maxmemory")
    return parse_bytes(bound, "maxmemory") if bound else default_maxmemory()


def _directory(address: Address) -> Path | None:
    if address.host or address.username or address.password:
        raise ConfigurationError(
            "an embedded store's URL is embedded:// or, with three slashes, embedded:///dir"
        )
    return Path(address.path) if address.path.strip("/") else None


def _start(address: Address, settings: StoreSettings) -> EmbeddedServer:
    return EmbeddedServer(
        _directory(address),
        maxmemory=_maxmemory(address),
        server=address.options.get("server", "auto"),
        start_timeout_s=settings.start_timeout_s,
    )


def _open_embedded(address: Address, settings: StoreSettings) -> PageStore:
    server = _start(address, settings)
    local = Address(scheme="unix", path=str(server.socket_path))
    try:
        return _open_redis(local, settings, on_close=server.close)
    except BaseException:
        server.close()
        raise


def _open_redis(
    address: Address, settings: StoreSettings, on_close: Callable[[], None] | None = None
) -> PageStore:
    _check_place(address)
    try:
        # Here and not above: memory:// must work without redis-py, and redis-py takes a while to
        # import.
        from lexico_store.redis_opening import servers_at
        from lexico_store.redis_store import RedisStore
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{address.scheme}:// needs {error.name}: pip install 'lexico-offload[store]'"
        ) from error
    return RedisStore(servers_at(address, settings), settings, on_close)


def _check_place(address: Address) -> None:
    """Raises ConfigurationError if the URL does not say where the servers are."""
    scheme = address.scheme
    if scheme == "unix":
        if address.host or not address.path.strip("/"):
            raise ConfigurationError(
                "a unix store's URL has the form unix:///path.sock, with three slashes"
            )
    elif not address.host:
        raise ConfigurationError(f"store URL ({scheme}): no host; write {_FORMS[scheme]}")
    elif scheme.endswith("+sentinel") and not address.service:
        raise ConfigurationError(f"store URL ({scheme}): no service; write {_FORMS[scheme]}")
    elif scheme.endswith("+cluster") and address.database:
        raise ConfigurationError(f"store URL ({scheme}): a cluster has database 0 alone")
    if address.password is not None and "password_file" in address.options:
        raise ConfigurationError(
            f"store URL ({scheme}): give a password or password_file, not both"
        )


_FORMS: Final = {
    "redis": "redis://host:6379",
    "rediss": "rediss://host:6379",
    "redis+sentinel": "redis+sentinel://host:26379,host2:26379/service",
    "rediss+sentinel": "rediss+sentinel://host:26379,host2:26379/service",
    "redis+cluster": "redis+cluster://host:6379,host2:6379",
    "rediss+cluster": "rediss+cluster://host:6379,host2:6379",
}
_TLS_OPTIONS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_LOGIN_OPTIONS: Final = frozenset({"password_file"})
_SENTINEL_OPTIONS: Final = frozenset({"db", "sentinel_username", "sentinel_password"})

SCHEMES: Final[dict[str, tuple[Callable[[Address, StoreSettings], PageStore], frozenset[str]]]] = {
    "memory": (_open_memory, frozenset({"maxmemory"})),
    "embedded": (_open_embedded, frozenset({"maxmemory", "server"})),
    "redis": (_open_redis, frozenset({"db"}) | _LOGIN_OPTIONS),
    "rediss": (_open_redis, frozenset({"db"}) | _LOGIN_OPTIONS | _TLS_OPTIONS),
    "unix": (_open_redis, frozenset({"db"}) | _LOGIN_OPTIONS),
    "redis+sentinel": (_open_redis, _SENTINEL_OPTIONS | _LOGIN_OPTIONS),
    "rediss+sentinel": (_open_redis, _SENTINEL_OPTIONS | _LOGIN_OPTIONS | _TLS_OPTIONS),
    "redis+cluster": (_open_redis, _LOGIN_OPTIONS),
    "rediss+cluster": (_open_redis, _LOGIN_OPTIONS | _TLS_OPTIONS),
}
"""Every scheme: what builds its store, and the query parameters that it takes."""

_BUILDERS: Final = {scheme: build for scheme, (build, _) in SCHEMES.items()}
_OPTIONS: Final = {scheme: options for scheme, (_, options) in SCHEMES.items()}
