from __future__ import annotations

from collections.abc import Iterator

import pytest

from lexico_proto.errors import ConfigurationError, StoreUnavailable
from lexico_store import PageStore, open_store
from tests.contract.redis_suite import QUICK
from tests.contract.store_suite import SMALL_BYTES, StoreSuite
from tests.support.servers import PATIENT, free_port
from tests.support.topologies import SENTINEL_PASSWORD, Watched, bounded, watched_servers


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched_servers(tmp_path_factory.mktemp("sentinel"), sentinels=1) as watched:
        yield watched


class TestSentinelStore(StoreSuite):
    @pytest.fixture
    def store(self, watched: Watched) -> Iterator[PageStore]:
        with open_store(watched.url, PATIENT) as store:
            yield store

    @pytest.fixture
    def small_store(self, watched: Watched) -> Iterator[PageStore]:
        with bounded(watched.servers, SMALL_BYTES), open_store(watched.url, PATIENT) as store:
            yield store


def test_a_sentinel_that_is_not_there_is_passed_over(watched: Watched) -> None:
    first, rest = watched.url.split("@", 1)
    with open_store(f"{first}@127.0.0.1:{free_port()},{rest}", PATIENT) as store:
        store.ping()


@pytest.mark.parametrize("change", [("/pages", "/others"), (SENTINEL_PASSWORD, "wrong")])
def test_no_primary_is_unavailable_for_a_call(watched: Watched, change: tuple[str, str]) -> None:
    """It may be named later; the look at start says what is wrong."""
    with open_store(watched.url.replace(*change), QUICK) as store:
        with pytest.raises(StoreUnavailable) as caught:
            store.ping()
    assert "wrong" not in str(caught.value)


def test_wrong_password_of_the_primary(watched: Watched) -> None:
    sentinels = watched.url.split("@", 1)[1]
    with open_store(f"redis+sentinel://:wrong@{sentinels}", PATIENT) as store:
        with pytest.raises(ConfigurationError, match="password"):
            store.ping()
