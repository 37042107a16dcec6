"""The reload server's dictionary sets: bytes a tenant has, damaged ones, built-in ones."""

from __future__ import annotations

import asyncio

import pytest

from lexico_codec.sets.builtin import builtin_sets, load_builtin
from lexico_proto import errors
from lexico_proto.v1 import dictionaries_pb2 as dict_pb
from lexico_services.reload import run
from lexico_services.reload.dictionaries_servicer import register_builtin_sets
from lexico_store import MemoryStore
from lexico_store.scopes import SHARED_SCOPE
from tests.support.dictionaries import random_set
from tests.support.reload_pages import (
    SCOPE,
    raises,
    registration,
    stream_of,
)
from tests.support.reload_server import running


async def test_bytes_of_a_tenants_sets_are_bounded() -> None:
    sets = [random_set(layers=1, head_dim=8, atoms=16, seed=i) for i in range(3)]
    size = len(sets[0].to_bytes())
    store = MemoryStore()
    async with running(store, max_dictionary_bytes_per_tenant=2 * size + 10) as services:
        for each in sets[:2]:
            messages = registration(each.to_bytes(), each.digest)
            assert (await services.dictionaries.Register(stream_of(messages))).added
        with raises(errors.Busy):
            messages = registration(sets[2].to_bytes(), sets[2].digest)
            await services.dictionaries.Register(stream_of(messages))
        assert store.get_dictionary(SCOPE, sets[2].digest) is None
        # A damaged one is replaced: it takes no room beside itself.
        store.put_dictionary(SCOPE, sets[1].digest, b"damaged")
        with raises(errors.UnknownDictionary):
            request = dict_pb.FetchRequest(digest=sets[1].digest)
            _ = [p async for p in services.dictionaries.Fetch(request)]
        messages = registration(sets[1].to_bytes(), sets[1].digest)
        assert (await services.dictionaries.Register(stream_of(messages))).added
        assert store.get_dictionary(SCOPE, sets[1].digest) == sets[1].to_bytes()


async def test_a_damaged_set_does_not_hide_the_others_from_a_list() -> None:
    good, bad = (random_set(layers=1, head_dim=8, atoms=16, seed=i) for i in range(2))
    store = MemoryStore()
    store.put_dictionary(SCOPE, good.digest, good.to_bytes())
    store.put_dictionary(SCOPE, bad.digest, b"damaged")
    async with running(store) as services:
        (info,) = (await services.dictionaries.List(dict_pb.ListRequest())).dictionaries
        assert info.digest == good.digest


async def test_built_in_sets_are_registered_once_the_store_is_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Away(MemoryStore):
        tries = 0

        def get_dictionary(self, scope: bytes, digest: bytes) -> bytes | None:
            self.tries += 1
            if self.tries < 3:
                raise errors.StoreUnavailable("away")
            if self.tries > 10:
                raise errors.ConfigurationError("refused")
            return super().get_dictionary(scope, digest)

    monkeypatch.setattr(run, "RETRY_S", 0.01)
    store, tried = Away(), asyncio.Event()
    await run._register_when_possible(store, tried)
    assert store.tries == 2 + len(builtin_sets())
    assert [r.getMessage() for r in caplog.records] == [
        "built-in sets wait for the store reason=store-unavailable"
    ]
    shipped = {load_builtin(name).digest for name in builtin_sets()}
    assert set(store.list_dictionaries(SHARED_SCOPE)) == shipped
    store.tries = 10
    with pytest.raises(errors.ConfigurationError):
        await run._register_when_possible(store, tried)


@pytest.mark.parametrize("damaged", [False, True])
async def test_built_in_sets_come_back(damaged: bool) -> None:
    dictionary = load_builtin(builtin_sets()[0])
    digest, data = dictionary.digest, dictionary.to_bytes()
    store = MemoryStore()
    register_builtin_sets(store)
    assert store.get_dictionary(SHARED_SCOPE, digest) == data
    if damaged:
        store.put_dictionary(SHARED_SCOPE, digest, b"damaged")
        register_builtin_sets(store)
        assert store.get_dictionary(SHARED_SCOPE, digest) == data
        store.put_dictionary(SHARED_SCOPE, digest, b"damaged")
    else:
        store = MemoryStore()  # as after FLUSHALL
    async with running(store) as services:
        request = dict_pb.FetchRequest(digest=digest)
        pieces = [p.data async for p in services.dictionaries.Fetch(request)]
        assert b"".join(pieces) == data
        assert store.get_dictionary(SHARED_SCOPE, digest) == data


async def test_a_built_in_set_is_served_by_a_full_store_too() -> None:
    class Full(MemoryStore):
        def put_dictionary(self, scope: bytes, digest: bytes, data: object) -> None:
            raise errors.Busy("full")

    dictionary = load_builtin(builtin_sets()[0])
    async with running(Full()) as services:
        request = dict_pb.FetchRequest(digest=dictionary.digest)
        pieces = [p.data async for p in services.dictionaries.Fetch(request)]
        assert b"".join(pieces) == dictionary.to_bytes()
