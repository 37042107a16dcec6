"""A store's URL, taken apart and checked. Messages never quote the URL: it may hold a password."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from lexico_proto.errors import ConfigurationError

DEFAULT_PORT: Final = 6379
SENTINEL_PORT: Final = 26379

_UNITS: Final = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1 << 10,
    "m": 1000**2,
    "mb": 1 << 20,
    "g": 1000**3,
    "gb": 1 << 30,
}
"""Units of a size, as redis.conf has them."""


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of a store's URL."""

    scheme: str
    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    """Percent-decoded; empty or absolute."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    options: dict[str, str] = field(default_factory=dict)
    """The query's parameters."""
    database: int = 0
    nodes: tuple[tuple[str, int], ...] = ()
    """Host and port of every server that the URL names; `host` and `port` are the first's."""

    @property
    def service(self) -> str:
        """What sentinels call the primary: the first part of the path."""
        return self.path.strip("/").partition("/")[0]

    @property
    def tls(self) -> bool:
        """Whether servers, and sentinels, are spoken to over TLS."""
        return self.scheme.startswith("rediss")

    def path_refused(self, scheme_form: str) -> None:
        """Raises ConfigurationError if there is a host, user or path: the scheme has none."""
        if self.host or self.path.strip("/") or self.username or self.password:
            raise ConfigurationError(f"a {self.scheme} store's URL has the form {scheme_form}")


def parse_address(url: str, options: dict[str, frozenset[str]]) -> Address:
    """The parts of `url`.

    Args:
        options: for each known scheme, the query parameters that it takes.

    Raises:
        ConfigurationError: unknown scheme or parameter, or a part that cannot be read; says what to
            write instead.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in options:
        named = f"unknown scheme {scheme!r}" if separator else "no scheme"
        raise ConfigurationError(
            f"store URL: {named}; give one of {', '.join(f'{name}://' for name in sorted(options))}"
        )
    try:
        nodes, first = _nodes(url)
        parts = urlsplit(first)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        # Not the error's own text: it may quote the part that holds the password.
        raise ConfigurationError(
            f"store URL ({scheme}): host, port or parameters cannot be read; percent-encode"
            " special characters in user, password and path"
        ) from error
    if parts.fragment:
        raise ConfigurationError(f"store URL ({scheme}): '#' must be percent-encoded as %23")
    if len(nodes) > 1 and "+" not in scheme:
        raise ConfigurationError(
            f"store URL ({scheme}): one host; several are written redis+sentinel:// or"
            " redis+cluster://"
        )
    found = _checked_options(scheme, query, options[scheme])
    return Address(
        scheme=scheme,
        host=nodes[0][0],
        port=nodes[0][1],
        path=unquote(parts.path),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        options=found,
        database=_database(parts, found),
        nodes=nodes,
    )


def parse_bytes(text: str, what: str) -> int:
    """A size such as `1gb` or `1000000` in bytes, as redis.conf reads it: `kb` 1024, `k` 1000."""
    match = re.fullmatch(r"([0-9]+)([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS or int(match[1]) == 0:
        raise ConfigurationError(f"{what}={text!r} is not a size: write 512mb or 2gb")
    return int(match[1]) * _UNITS[match[2]]


def _nodes(url: str) -> tuple[tuple[tuple[str, int], ...], str]:
    """Every host and port of a URL, and the URL with the first of them alone."""
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    login, at, hosts = authority.rpartition("@")
    names = hosts.split(",")
    default = SENTINEL_PORT if scheme.endswith("+sentinel") else DEFAULT_PORT
    found = []
    for name in names:
        parts = urlsplit(f"//{name}")
        if not parts.hostname and len(names) > 1:
            raise ValueError("a host is missing between commas")
        found.append((parts.hostname or "", default if parts.port is None else parts.port))
    return tuple(found), f"{scheme}://{login}{at}{names[0]}{rest[len(authority) :]}"


def _checked_options(
    scheme: str, query: list[tuple[str, str]], known: Collection[str]
) -> dict[str, str]:
    for name, value in query:
        if name not in known:
            takes = ", ".join(sorted(known)) or "none"
            raise ConfigurationError(
                f"store URL ({scheme}): unknown parameter {name!r}; it takes: {takes}"
            )
        if not value:
            raise ConfigurationError(f"store URL ({scheme}): parameter {name!r} has no value")
    if len(dict(query)) != len(query):
        raise ConfigurationError(f"store URL ({scheme}): a parameter is given twice")
    return dict(query)


def _database(parts: SplitResult, options: dict[str, str]) -> int:
    """The database of `redis://host/2` or `?db=2`; 0 where the scheme has none.

    A sentinel's URL has it after the service: `redis+sentinel://host/service/2`.
    """
    in_path = parts.path.strip("/") if parts.scheme.startswith("redis") else ""
    if parts.scheme.endswith("+sentinel"):
        in_path = in_path.partition("/")[2]
    text = options.get("db", in_path or "0")
    if not re.fullmatch(r"[0-9]{1,5}", text) or (in_path and "db" in options):
        raise ConfigurationError(
            f"store URL ({parts.scheme}): the database is one number: write /2 or ?db=2, once"
        )
    return int(text)
