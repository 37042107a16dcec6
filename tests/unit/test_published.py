"""Records of published sets, in a store."""

from __future__ import annotations

import pytest

from lexico_proto.errors import Busy, InvalidInput
from lexico_store import MemoryStore, Published, PublishedSets, keys
from lexico_store import published as module

TENANT, OTHER = b"tenant-of-a-test", b"another-tenant"
MODEL, SHAPE = b"m" * 32, b"s" * 32
SET, NEWER = b"d" * 32, b"e" * 32
CODECS = ("lexico", "lexico-adaptive")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def sets(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> PublishedSets:
    moments = iter(range(1, 100))
    monkeypatch.setattr(module, "now_us", lambda: next(moments))
    return PublishedSets(store)


def test_a_set_is_found_by_any_name_and_codec(sets: PublishedSets) -> None:
    assert sets.find(TENANT, [MODEL], "lexico") is None
    sets.publish(TENANT, [MODEL, SHAPE], CODECS, SET)
    for name in (MODEL, SHAPE):
        for codec in CODECS:
            assert sets.find(TENANT, [b"x" * 32, name], codec) == Published(SET, 1)
    assert sets.find(TENANT, [MODEL], "lexico-residual") is None
    assert sets.find(OTHER, [MODEL, SHAPE], "lexico") is None


def test_the_first_name_counts_and_the_first_time_stays(sets: PublishedSets) -> None:
    sets.publish(TENANT, [MODEL, SHAPE], CODECS, SET)
    sets.publish(TENANT, [SHAPE], CODECS[:1], NEWER)
    assert sets.find(TENANT, [MODEL, SHAPE], "lexico") == Published(SET, 1)
    assert sets.find(TENANT, [SHAPE], "lexico") == Published(NEWER, 1)
    assert sets.find(TENANT, [SHAPE], "lexico-adaptive") == Published(SET, 1)


def test_taken_back_it_is_gone_and_others_stay(sets: PublishedSets, store: MemoryStore) -> None:
    sets.publish(TENANT, [MODEL, SHAPE], CODECS, SET)
    assert sets.take_back(TENANT, [MODEL]) == list(CODECS)
    assert sets.take_back(TENANT, [MODEL]) == []
    assert sets.find(TENANT, [MODEL], "lexico") is None
    assert sets.find(TENANT, [SHAPE], "lexico") == Published(SET, 1)
    sets.publish(TENANT, [MODEL], CODECS, SET)
    found = sets.find(TENANT, [MODEL], "lexico")
    assert found is not None
    assert found.first_us > 1
    sets.take_back(TENANT, [MODEL, SHAPE])
    assert store.read_record(keys.published(TENANT)) == {}


def test_records_are_bounded(sets: PublishedSets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PUBLISHED", 4)
    sets.publish(TENANT, [MODEL, SHAPE], CODECS, SET)
    with pytest.raises(Busy, match="take some back"):
        sets.publish(TENANT, [b"x" * 32], CODECS, SET)
    sets.publish(TENANT, [SHAPE], CODECS, NEWER)  # takes no more room
    sets.publish(OTHER, [b"x" * 32], CODECS, SET)


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"{", b"[]", b"null", b"\xff", b'{"digest": 3, "first_us": 1}'),
        *(b'{"digest": "00", "first_us": 1}', b'{"digest": "zz"}'),
        b'{"digest": "' + b"00" * 32 + b'", "first_us": 1e999}',
    ],
)
def test_a_damaged_record_is_none(sets: PublishedSets, store: MemoryStore, value: bytes) -> None:
    sets.publish(TENANT, [SHAPE], CODECS, SET)
    store.write_record(keys.published(TENANT), {MODEL + b"lexico": value})
    assert sets.find(TENANT, [MODEL], "lexico") is None
    assert sets.find(TENANT, [MODEL, SHAPE], "lexico") == Published(SET, 1)
    sets.publish(TENANT, [MODEL], CODECS, NEWER)
    assert sets.find(TENANT, [MODEL], "lexico") == Published(NEWER, 2)


def test_names_are_checked(sets: PublishedSets) -> None:
    with pytest.raises(InvalidInput):
        sets.publish(TENANT, [b"short"], CODECS, SET)
    with pytest.raises(InvalidInput):
        sets.find(b"", [MODEL], "lexico")
    with pytest.raises(InvalidInput):
        sets.publish(TENANT, [MODEL], CODECS, b"")
