"""What one look at a store says, and that the rights it asks for suffice."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lexico_proto.errors import Busy, ConfigurationError, StoreUnavailable
from lexico_store import Finding, Level, PageStore, StoreSettings, open_store
from lexico_store.redis_rights import COMMANDS, KEYS, RULE
from tests.contract.redis_suite import QUICK
from tests.contract.store_suite import SMALL_BYTES, TTL_S, StoreSuite, key_of
from tests.support.servers import PASSWORD_IN_URL, PATIENT, RedisServer, free_port, redis_server
from tests.support.topologies import (
    SENTINEL_PASSWORD,
    Cluster,
    Watched,
    bounded,
    client_of,
    cluster,
    watched_servers,
)

SCOPE = os.urandom(16)
WELL = {"maxmemory": "100mb", "maxmemory-policy": "volatile-lfu", "save": ""}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def raw(server: RedisServer) -> Iterator[Any]:
    """The operator's client. What it sets is undone."""
    with client_of(server) as client:
        for name, value in WELL.items():
            client.config_set(name, value)
        yield client
        client.acl_deluser("pages")


@pytest.fixture
def grant(server: RedisServer, raw: Any) -> Callable[[str], str]:
    """Gives the user `pages` rights, and this user's URL."""

    def give(rights: str) -> str:
        raw.execute_command("ACL", "SETUSER", "pages", "reset", "on", ">pages'", *rights.split())
        return f"redis://pages:pages'@127.0.0.1:{server.port}"

    return give


def found(url: str, settings: StoreSettings = PATIENT) -> list[Finding]:
    with open_store(url, settings) as store:
        return store.look()


def test_nothing_to_say_of_a_store_that_is_well(server: RedisServer, raw: Any) -> None:
    before = raw.dbsize()
    assert found(server.url) == []
    assert raw.dbsize() == before
    assert found("memory://") == []


def test_the_embedded_server_is_well() -> None:
    assert found("embedded://?server=wheel") == []


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"maxmemory": "0"}, "no maxmemory.*: set maxmemory below the machine's [0-9]+ MiB"),
        ({"maxmemory-policy": "allkeys-lru"}, "allkeys-lru.*dictionary sets too: set.*volatile"),
        ({"maxmemory-policy": "allkeys-random"}, "allkeys-random"),
        ({"maxmemory-policy": "noeviction"}, "noeviction.*: set maxmemory-policy"),
    ],
)
def test_memory(server: RedisServer, raw: Any, setting: dict[str, str], says: str) -> None:
    for name, value in setting.items():
        raw.config_set(name, value)
    (finding,) = found(server.url)
    assert finding.level is Level.WARNING
    assert re.search(says, str(finding))


def test_a_policy_and_no_bound_are_two_findings(server: RedisServer, raw: Any) -> None:
    raw.config_set("maxmemory", "0")
    raw.config_set("maxmemory-policy", "noeviction")
    assert [each.level for each in found(server.url)] == [Level.WARNING] * 2


def test_pages_on_disk_are_a_note(server: RedisServer, raw: Any) -> None:
    raw.config_set("save", "3600 1")
    (finding,) = found(server.url)
    assert finding.level is Level.NOTE
    assert 'save "3600 1"' in finding.what


def test_a_replica_is_said(server: RedisServer, raw: Any) -> None:
    raw.replicaof("127.0.0.1", 1)
    try:
        findings = found(server.url)
    finally:
        raw.replicaof("NO", "ONE")
    assert [each.level for each in findings] == [Level.WARNING]
    assert "replica of 127.0.0.1:1" in findings[0].what


def test_a_store_that_is_away_or_refuses(server: RedisServer) -> None:
    with pytest.raises(StoreUnavailable):
        found(f"redis://127.0.0.1:{free_port()}", QUICK)
    with pytest.raises(ConfigurationError, match="password"):
        found(f"redis://:wrong@127.0.0.1:{server.port}")


# Rights


def test_the_rule_suffices_for_the_look(grant: Callable[[str], str]) -> None:
    assert found(grant(RULE)) == []


@pytest.mark.parametrize("name", [each for each in COMMANDS if each not in ("multi", "ping")])
def test_each_command_that_is_missing_is_named(
    grant: Callable[[str], str], raw: Any, name: str
) -> None:
    before = raw.dbsize()
    findings = [each for each in found(grant(f"{RULE} -{name}")) if each.level is Level.REFUSED]
    assert [str(each) for each in findings] == [
        f"the store's user may not use {name.upper()}: allow it +{name}"
    ]
    assert raw.dbsize() == before


@pytest.mark.parametrize("category", ["@transaction", "@scripting", "@write", "@read", "@hash"])
def test_categories_that_are_missing_are_refused(
    grant: Callable[[str], str], raw: Any, category: str
) -> None:
    """As providers hand users out: all but some categories."""
    before = raw.dbsize()
    assert found(grant(f"~* +@all -{category}"))[0].level is Level.REFUSED
    assert raw.dbsize() == before


def test_names_that_are_not_the_users(grant: Callable[[str], str]) -> None:
    (finding,) = found(grant(RULE.replace(KEYS, "~other:*")))
    assert finding.level is Level.REFUSED
    assert finding.to_do == f"allow it {KEYS}"


def test_without_info_the_rest_is_still_said(grant: Callable[[str], str]) -> None:
    (finding,) = found(grant(f"{RULE} -info -config"))
    assert finding.level is Level.NOTE
    assert "+info" in finding.to_do


def test_rights_that_are_revoked_while_connected(
    grant: Callable[[str], str], raw: Any, server: RedisServer
) -> None:
    """Redis keeps the connection: each call says so, nothing is stored, and it heals."""
    with open_store(grant(RULE), PATIENT) as store:
        store.commit(SCOPE, key_of(1), [b"x"], TTL_S)
        raw.execute_command("ACL", "SETUSER", "pages", "-hset", "-evalsha")
        with pytest.raises(ConfigurationError, match="ACL"):
            store.commit(SCOPE, key_of(2), [b"y"], TTL_S)
        with pytest.raises(ConfigurationError, match="ACL"):
            store.lease(SCOPE, key_of(2), TTL_S)
        assert store.present(SCOPE, [key_of(1), key_of(2)]) == [True, False]
        raw.execute_command("ACL", "SETUSER", "pages", "+hset", "+evalsha")
        store.commit(SCOPE, key_of(2), [b"y"], TTL_S)
        assert store.read_page(SCOPE, key_of(2)) == [b"y"]


def test_a_password_that_is_rotated(
    grant: Callable[[str], str], raw: Any, server: RedisServer, tmp_path: Path
) -> None:
    """In the URL it needs a restart, which is said; a file is read for each new connection."""
    secret = tmp_path / "password"
    secret.write_text("pages'\n")
    url = grant(RULE)
    from_file = f"redis://pages@127.0.0.1:{server.port}?password_file={secret}"
    with open_store(url, PATIENT) as fixed, open_store(from_file, PATIENT) as rotated:
        for store in (fixed, rotated):
            store.ping()
        raw.execute_command("ACL", "SETUSER", "pages", "resetpass", ">new")
        secret.write_text("new\n")
        raw.client_kill_filter(_type="normal", skipme=True)
        rotated.commit(SCOPE, key_of(3), [b"x"], TTL_S)
        with pytest.raises(ConfigurationError, match="password"):
            fixed.ping()
        secret.unlink()
        raw.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(ConfigurationError, match="password"):
            rotated.ping()
        secret.write_text("new\n")
        assert rotated.present(SCOPE, [key_of(3)]) == [True]


class TestLeastRights(StoreSuite):
    """The rule suffices for everything that a store does."""

    @pytest.fixture
    def store(self, grant: Callable[[str], str]) -> Iterator[PageStore]:
        with open_store(grant(RULE), PATIENT) as store:
            yield store

    @pytest.fixture
    def small_store(self, grant: Callable[[str], str], server: RedisServer) -> Iterator[PageStore]:
        with bounded([server], SMALL_BYTES), open_store(grant(RULE), PATIENT) as store:
            yield store


# Sentinels and clusters


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched_servers(tmp_path_factory.mktemp("sentinel"), sentinels=1) as watched:
        with client_of(watched.primary()) as primary:
            for name, value in WELL.items():
                primary.config_set(name, value)
        yield watched


def test_too_few_sentinels_and_small_buffers(watched: Watched) -> None:
    few, buffers = found(watched.url)
    assert {few.level, buffers.level} == {Level.WARNING}
    assert "1 sentinel watches" in few.what
    assert "64 MiB" in buffers.what
    assert "client-output-buffer-limit" in buffers.to_do


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("/pages", "/others"), "knows no service 'others': it knows: pages"),
        ((SENTINEL_PASSWORD, "wrong"), "refuses us: give [?]sentinel_username="),
    ],
)
def test_sentinels_that_cannot_work(watched: Watched, change: tuple[str, str], says: str) -> None:
    with open_store(watched.url.replace(*change), PATIENT) as store:
        with pytest.raises(ConfigurationError, match=says):
            refuse(store)


def test_a_server_is_no_sentinel(server: RedisServer) -> None:
    url = f"redis+sentinel://127.0.0.1:{server.port}/pages?sentinel_password={PASSWORD_IN_URL}"
    with open_store(url, PATIENT) as store:
        with pytest.raises(ConfigurationError, match="is no sentinel"):
            refuse(store)


def refuse(store: PageStore) -> None:
    """As the services do."""
    from lexico_services.store_look import look_at_start

    look_at_start(store)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    bound = ("--maxmemory", "20mb", "--maxmemory-policy", "noeviction")
    with cluster(tmp_path_factory.mktemp("cluster"), *bound) as made:
        yield made


def test_a_cluster_by_the_url_of_one_server_is_refused(nodes: Cluster) -> None:
    port = nodes.servers[0].port
    url = f"redis://:{PASSWORD_IN_URL}@127.0.0.1:{port}"
    (refused,) = [each for each in found(url) if each.level is Level.REFUSED]
    assert "redis+cluster://" in refused.to_do


def test_what_all_nodes_have_is_said_once(nodes: Cluster) -> None:
    (finding,) = found(nodes.url)
    assert "noeviction" in finding.what


def test_a_cluster_whose_user_may_not_follow_slots_that_move(nodes: Cluster) -> None:
    for node in nodes.servers:
        with client_of(node) as client:
            rights = f"{RULE} -asking".split()
            client.execute_command("ACL", "SETUSER", "still", "reset", "on", ">still", *rights)
    says = [str(each) for each in found(nodes.url.replace(f":{PASSWORD_IN_URL}@", "still:still@"))]
    expected = (
        "the store's user may not use ASKING: pages of slots that move fail: allow it +asking"
    )
    assert expected in says


def test_a_full_node_is_busy(nodes: Cluster) -> None:
    with open_store(nodes.url, PATIENT) as store:
        with pytest.raises(Busy, match="maxmemory"):
            fill(store)
        there = store.present(SCOPE, PAGES)
        assert not all(there)
        assert any(there)
        store.discard(SCOPE, PAGES)


PAGES = [key_of(n) for n in range(99)]


def fill(store: PageStore) -> None:
    for key in PAGES:
        store.commit(SCOPE, key, [os.urandom(1 << 20)], TTL_S)


def test_one_server_is_no_cluster(server: RedisServer) -> None:
    url = server.url.replace("redis://", "redis+cluster://").removesuffix("/0")
    with open_store(url, PATIENT) as store:
        with pytest.raises(ConfigurationError, match="not a cluster"):
            store.look()


def test_the_rule_stands_in_the_documentation() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "stores.md").read_text()
    assert RULE in " ".join(text.split())
