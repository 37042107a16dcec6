"""The namespaces that a tenant has pages of, seen from the one that a prompt has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lexico_client import AbsenceCause, Client, InMemoryTransport, input_digests
from lexico_client._nearest import nearest_first
from lexico_codec.geometry import Rope
from lexico_codec.keys import page_keys
from lexico_codec.namespaces import namespace_digest
from lexico_codec.spec import CacheSpec
from lexico_codec.wire import described
from lexico_proto.errors import Busy, LexicoError, Unsupported
from lexico_proto.v1 import reload_pb2 as reload
from lexico_services.reload.namespaces import MAX_LISTED, stored_namespaces
from lexico_store import Descriptions, Ledger, MemoryStore, keys
from lexico_store.ledger import MAX_DESCRIBED, MAX_DESCRIPTION_BYTES
from lexico_store.lifetimes import now_us
from tests.support.client_fixtures import (
    PAGE_TOKENS,
    TOKENS,
    random_cache,
    small_spec,
    views_of,
)

TENANT = b"tenant-of-a-test"


@pytest.fixture
def transport() -> InMemoryTransport:
    return InMemoryTransport()


@pytest.fixture
def client(transport: InMemoryTransport, tmp_path: Path) -> Iterator[Client]:
    with Client(transport=transport, dictionaries_dir=tmp_path / "sets") as client:
        yield client


def offload(client: Client, spec: CacheSpec, pages: int = 4, **more: Any) -> None:
    client.offload(spec, TOKENS, views_of(spec, random_cache(spec, 4)), pages=pages, **more)


def message_of(spec: CacheSpec, stored_s: float = 1.0) -> reload.StoredNamespace:
    message = described(spec)
    message.digest, message.stored_s = namespace_digest(spec.namespace), stored_s
    return message


def note(store: MemoryStore, spec: CacheSpec, key: bytes, began_us: int) -> None:
    store.commit(TENANT, key, [b"a"], 60)
    described_as = described(spec).SerializeToString()
    about = (spec.namespace, TENANT, key, 1, "codec raw")
    Ledger(store).note(TENANT, *about, description=described_as, began_us=began_us)


def test_each_part_that_differs_is_named_with_both_values(client: Client) -> None:
    spec = small_spec()
    assert client.explain(spec, TOKENS).nearest is None
    offload(client, replace(spec, weights=bytes(32), lora="red", page_tokens=16), 1)
    offload(client, replace(spec, lora="blue"), 2)
    explained = client.explain(spec, TOKENS)
    nearest = explained.nearest
    assert nearest is not None
    assert [(d.part, d.ours, d.theirs) for d in nearest.differences] == [("lora", "none", "blue")]
    assert (nearest.tokens, explained.namespaces) == (2 * PAGE_TOKENS, 2)
    assert {d.part for d in explained.stored[1].differences} == {"weights", "lora", "pages"}
    assert [each.identity.lora for each in explained.holders] == ["blue", "red"]
    assert explained.absence is not None
    assert explained.absence.cause is AbsenceCause.NO_TRACE
    text = explained.text()
    for line in (
        "nearest       differs in 1 part; stored 20",
        "              part  here  there\n              lora  none  blue",
        "elsewhere     16 tokens, in a namespace with other lora",
        "nothing says that a node ever stored it",
    ):
        assert line in text
    offload(client, spec, 1)
    nearest = client.explain(spec, TOKENS).nearest
    assert nearest is not None
    assert (nearest.differences, nearest.identity) == ((), spec.identity)
    assert "nearest       this one: pages" in client.explain(spec, TOKENS).text()


def test_the_newest_of_equals_is_the_nearest() -> None:
    spec = small_spec()
    older, newer = (replace(spec, lora=name) for name in ("older", "newer"))
    listed = nearest_first(spec.identity, [message_of(older, 1.0), message_of(newer, 2.0)])
    assert [each.identity.lora for each in listed] == ["newer", "older"]


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ("", "mine", [("salt", "none", "one that is not told")]),
        ("mine", "", [("salt", "6d696e65", "none")]),
        ("mine", "theirs", [("salt", "6d696e65", "one that is not told")]),
        ("mine", "mine", []),
        ("", "", []),
    ],
)
def test_a_salt_is_compared_and_not_told(
    ours: str, theirs: str, said: list[tuple[str, str, str]]
) -> None:
    mine, stored = (replace(small_spec(), salt=salt, lora="red") for salt in (ours, theirs))
    message = message_of(stored)
    assert b"theirs" not in message.SerializeToString()
    assert stored.namespace not in message.SerializeToString()
    (found,) = nearest_first(mine.identity, [message])
    assert [(d.part, d.ours, d.theirs) for d in found.differences] == said
    assert found.other_salt is (said != [] and theirs != "")
    (far,) = nearest_first(replace(mine, lora="").identity, [message])
    assert [d.part for d in far.differences] == ["lora", *(part for part, _, _ in said)]


def test_rotary_frequencies_that_read_alike_are_told_apart() -> None:
    spec = small_spec()
    ropes = [Rope((1.0, first, 0.1, 0.01)) for first in (0.5, 0.7)]
    ours, theirs = (replace(spec, geometry=replace(spec.geometry, rope=rope)) for rope in ropes)
    (found,) = nearest_first(ours.identity, [message_of(theirs)])
    (difference,) = found.differences
    assert difference.part == "geometry"
    assert "it turns pair 1 by 0.5 radians a token, not 0.7" in difference.theirs


def test_what_this_node_does_not_understand_is_left_out() -> None:
    spec = small_spec()
    newer, other = message_of(spec), message_of(spec)
    newer.spec.codec = "of-a-later-release"
    newer.spec.geometry.dtype = 99  # type: ignore[assignment]
    other.digest = bytes(32)
    assert nearest_first(spec.identity, [newer, other, reload.StoredNamespace()]) == ()
    later = message_of(spec)
    later.spec.codec = "of-a-later-release"
    identity = replace(spec.identity, codec="of-a-later-release")
    later.digest = namespace_digest(identity.namespace)
    (found,) = nearest_first(spec.identity, [later])
    assert [d.theirs for d in found.differences] == ["of-a-later-release"]


def test_pages_that_left_and_tokens_without_inputs(
    client: Client, transport: InMemoryTransport
) -> None:
    spec = small_spec()
    offload(client, spec)
    del transport.pages[page_keys(spec, TOKENS)[2]]
    explained = client.explain(spec, TOKENS)
    assert explained.absence is not None
    assert explained.absence.cause is AbsenceCause.LEFT
    assert "it was stored, and expired or was evicted since" in explained.text()
    inputs = input_digests([(0, 1, "a picture")], PAGE_TOKENS, len(TOKENS))
    explained = client.explain(spec, TOKENS, inputs=inputs)
    assert (explained.match.tokens, explained.plain_tokens) == (0, 2 * PAGE_TOKENS)
    assert "elsewhere     16 tokens, without inputs beside them" in explained.text()


def test_inputs_go_along_to_pages_of_their_length_alone(client: Client) -> None:
    spec = small_spec()
    inputs = input_digests([(PAGE_TOKENS, 1, "a picture")], PAGE_TOKENS, len(TOKENS))
    offload(client, replace(spec, lora="red"), 4, inputs=inputs)
    shorter = replace(spec, page_tokens=PAGE_TOKENS // 2)
    source = views_of(shorter, random_cache(shorter, 4))
    client.offload(shorter, TOKENS, source, pages=4)
    explained = client.explain(spec, TOKENS, inputs=inputs)
    assert {each.identity.lora: each.tokens for each in explained.stored} == {
        "red": 4 * PAGE_TOKENS,
        "": PAGE_TOKENS,  # up to the picture
    }


@pytest.mark.parametrize("error", [Unsupported("UNIMPLEMENTED"), Busy("64 calls are under way")])
def test_a_server_that_does_not_say(
    client: Client,
    transport: InMemoryTransport,
    monkeypatch: pytest.MonkeyPatch,
    error: LexicoError,
) -> None:
    offload(client, small_spec(), 1)

    async def refused(*_: object) -> reload.NamespacesResponse:
        raise error

    monkeypatch.setattr(transport, "namespaces", refused)
    explained = client.explain(small_spec(), TOKENS)
    assert (explained.match.pages, explained.untold, explained.stored) == (1, error, ())
    assert (explained.namespaces, explained.absence) == (None, None)
    text = explained.text()
    assert "no node has stored it under this namespace, or it has left the store" in text
    old = "the server is of a release that does not list namespaces"
    assert (old if isinstance(error, Unsupported) else "64 calls are under way") in text


def test_what_is_known_is_told_though_a_later_question_fails(
    client: Client, transport: InMemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_spec()
    offload(client, replace(spec, lora="red"), 1)
    asked, match = [], transport.match

    async def once(request: reload.MatchRequest, timeout: float) -> reload.MatchResponse:
        asked.append(timeout)
        if len(asked) > 1:
            raise Busy("64 calls are under way")
        return await match(request, timeout)

    monkeypatch.setattr(transport, "match", once)
    explained = client.explain(spec, TOKENS)
    assert isinstance(explained.untold, Busy)
    assert explained.nearest is not None
    assert [d.part for d in explained.nearest.differences] == ["lora"]
    assert explained.nearest.tokens is None
    assert asked[1] < asked[0]
    assert "differs in 1 part" in explained.text()
    assert "64 calls are under way" in explained.text()


def test_an_answer_is_bounded_and_has_those_that_are_like_the_spec() -> None:
    """Of 200 namespaces, most with other weights."""
    store, spec, now = MemoryStore(), small_spec(), now_us()
    for n in range(200):
        strange = replace(spec, lora=str(n), weights=bytes([n]) * 32, page_tokens=16)
        note(store, strange, n.to_bytes(32, "big"), now + n)
    near = [replace(spec, lora=f"near {n}") for n in range(5)]
    for n, each in enumerate((*near, spec)):
        note(store, each, (1000 + n).to_bytes(32, "big"), now - n)
    request = reload.NamespacesRequest(namespace=spec.namespace, spec=described(spec).spec)
    response = stored_namespaces(store, TENANT, request)
    assert (response.total, len(response.namespaces)) == (206, MAX_LISTED)
    said = [each.spec.lora for each in response.namespaces]
    assert said[:6] == ["", *(f"near {n}" for n in range(5))]
    assert said[6] == "199", "the newest of equals"
    assert stored_namespaces(store, b"another-tenant", request) == reload.NamespacesResponse()


def test_damaged_notes_are_passed_over() -> None:
    store, spec, now = MemoryStore(), small_spec(), now_us()
    note(store, spec, bytes(32), now)
    ledger = Ledger(store)
    for n, what in enumerate((b"\xff\xff", b"", b"x" * (MAX_DESCRIPTION_BYTES + 1))):
        about = (bytes([n]) * 32, TENANT, bytes(32), 1, "codec raw")
        ledger.note(TENANT, *about, description=what, began_us=now)
    response = stored_namespaces(store, TENANT, reload.NamespacesRequest(namespace=spec.namespace))
    assert (response.total, len(response.namespaces)) == (4, 1)


def test_descriptions_stay_bounded_where_there_is_a_salt_for_each_user() -> None:
    store, now = MemoryStore(), now_us()
    ledger, count = Ledger(store), 3 * MAX_DESCRIBED
    for n in range(count):
        name = namespace_digest(n.to_bytes(4, "big"))
        store.commit(TENANT, name, [b"a"], 60)
        ledger.note(TENANT, name, TENANT, name, 1, "codec raw", description=b"x", began_us=now)
    record = store.read_record(keys.namespaces(TENANT))
    assert len(record) == count
    described_ones = sum(b"\n" in value for value in record.values())
    # The first ones came while there were few: they are described until their next note.
    assert MAX_DESCRIBED <= described_ones < 2.5 * MAX_DESCRIBED
    total, found = Descriptions(store).of(TENANT, bytes(32))
    assert total == count
    assert 0 < len(found) <= MAX_DESCRIBED
