"""A page on its way into the store, without gRPC and without Ray."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lexico_codec.geometry import Geometry
from lexico_codec.pages import decode_group
from lexico_codec.pieces import Piece
from lexico_codec.sets.builtin import load_builtin
from lexico_proto import errors
from lexico_store import MemoryStore
from lexico_store.lifetimes import now_us
from lexico_store.scopes import SHARED_SCOPE
from lexico_worker.page_encoder import Outcome, PageEncoder, PageJob
from tests.support.dictionaries import random_set
from tests.support.newer_frames import of_version
from tests.support.services import Prompt, prompt

SCOPE = b"tenant-of-a-test"


def encoder(store: MemoryStore) -> PageEncoder:
    return PageEncoder(store, page_ttl_s=60, lease_ttl_s=30)


def job(made: Prompt, page: int = 0) -> PageJob:
    return PageJob(SCOPE, made.spec, page, made.keys[page])


def raw(made: Prompt, page: int = 0) -> list[Piece]:
    """The page's bytes in pieces that end anywhere."""
    data = np.frombuffer(made.data(page), np.uint8)
    return [data[:1], data[1:7], data[7:8].copy(), data[8:]]


def test_pages_are_stored_group_by_group() -> None:
    made, store = prompt(group_layers=2), MemoryStore()
    pages = encoder(store)
    for page in range(2):
        assert pages.encode_page(job(made, page), raw(made, page)).outcome is Outcome.STORED
    for page, key in enumerate(made.keys):  # the second must not have overwritten the first
        for group, expected in enumerate(made.pages[page]):
            frame = store.read(SCOPE, [key], group)[0]
            assert isinstance(frame, bytes)
            out = torch.empty_like(expected)
            decode_group(made.spec, key, page, group, frame, out)
            assert torch.equal(out, expected)


@pytest.mark.parametrize("shared", [True, False])
def test_dictionaries_come_from_the_tenant_or_the_operator(shared: bool) -> None:
    dictionary = random_set(layers=3, head_dim=8, atoms=16, kv_heads=2)
    made = prompt(codec="lexico", codec_config='{"sparsity":2}', dictionary=dictionary.digest)
    store = MemoryStore()
    with pytest.raises(errors.UnknownDictionary):
        encoder(store).encode_page(job(made), raw(made))
    store.put_dictionary(b"another tenant", dictionary.digest, dictionary.to_bytes())
    with pytest.raises(errors.UnknownDictionary):
        encoder(store).encode_page(job(made), raw(made))
    scope = SHARED_SCOPE if shared else SCOPE
    store.put_dictionary(scope, dictionary.digest, dictionary.to_bytes())
    done = encoder(store).encode_page(job(made), raw(made))
    assert (done.outcome, done.stored_bytes > 0) == (Outcome.STORED, True)


def test_a_set_for_another_rotary_embedding_is_refused() -> None:
    dictionary = load_builtin("smollm2-135m")
    assert dictionary.rope is not None
    other = replace(dictionary.rope, pairing="interleaved")
    geometry = Geometry(30, 3, 64, "float16", other)
    made = prompt(
        pages=1, page_tokens=1, geometry=geometry, codec="lexico", dictionary=dictionary.digest
    )
    with pytest.raises(errors.DictionaryMismatch, match="rotary embedding"):
        encoder(MemoryStore()).encode_page(job(made), raw(made))


def test_a_set_for_another_model_is_refused() -> None:
    dictionary = random_set(layers=2, head_dim=8, atoms=16)
    made = prompt(codec="lexico", codec_config='{"sparsity":2}', dictionary=dictionary.digest)
    store = MemoryStore()
    store.put_dictionary(SCOPE, dictionary.digest, dictionary.to_bytes())
    with pytest.raises(errors.DictionaryMismatch):
        encoder(store).encode_page(job(made), raw(made))
    assert store.lease(SCOPE, made.keys[0], 1) is not None  # the failed job let its own go


def test_one_at_a_time() -> None:
    made, store = prompt(), MemoryStore()
    mine = job(made)
    assert store.lease(SCOPE, mine.page_key, 30, b"another") is not None
    assert encoder(store).encode_page(mine, raw(made)).outcome is Outcome.IN_PROGRESS
    again = job(made, 1)
    assert store.lease(SCOPE, again.page_key, 30, again.owner) is not None  # from a dead attempt
    assert encoder(store).encode_page(again, raw(made, 1)).outcome is Outcome.STORED
    assert encoder(store).encode_page(again, raw(made, 1)).outcome is Outcome.PRESENT


def test_a_newer_page_is_left_alone() -> None:
    made, store = prompt(), MemoryStore()
    encoder(store).encode_page(job(made), raw(made))
    frame = store.read(SCOPE, made.keys[:1], 0)[0]
    assert isinstance(frame, bytes)
    newer = of_version(frame, 3)
    store.commit(SCOPE, made.keys[0], [newer], 60)
    assert encoder(store).encode_page(job(made), raw(made)).outcome is Outcome.PRESENT
    assert store.read(SCOPE, made.keys[:1], 0) == [newer]


def test_a_cancelled_page_is_not_written() -> None:
    made, store, cancelled = prompt(), MemoryStore(), threading.Event()
    cancelled.set()
    with pytest.raises(errors.Cancelled):
        encoder(store).encode_page(job(made), raw(made), cancelled)
    assert store.present(SCOPE, made.keys) == [False, False]


def test_a_failed_commit_lets_the_lease_go() -> None:
    class Full(MemoryStore):
        def commit(
            self,
            scope: bytes,
            key: bytes,
            frames: Sequence[Any],
            ttl_s: float,
            *,
            page: int = 0,
            began_us: int | None = None,
        ) -> bool:
            raise errors.Busy("full")

    made, store = prompt(), Full()
    with pytest.raises(errors.Busy):
        encoder(store).encode_page(job(made), raw(made))
    assert store.lease(SCOPE, made.keys[0], 1) is not None


def test_wrong_length() -> None:
    made = prompt()
    for pieces in (raw(made)[:-1], [*raw(made), np.zeros(1, np.uint8)], []):
        with pytest.raises(errors.ShapeMismatch):
            encoder(MemoryStore()).encode_page(job(made), pieces)


def test_a_shipped_set_needs_no_registration() -> None:
    dictionary = load_builtin("smollm2-135m")
    geometry = Geometry(30, 3, 64, "float16", dictionary.rope)
    made = prompt(
        pages=1, page_tokens=1, geometry=geometry, codec="lexico", dictionary=dictionary.digest
    )
    assert encoder(MemoryStore()).encode_page(job(made), raw(made)).outcome is Outcome.STORED


def test_slow_work_shows_progress_and_keeps_its_lease() -> None:
    class Counting(MemoryStore):
        leases = 0

        def lease(self, *arguments: Any) -> Any:
            self.leases += 1
            return super().lease(*arguments)

    made, store = prompt(group_layers=1), Counting()
    calls: list[int] = []
    slow = PageEncoder(store, page_ttl_s=60, lease_ttl_s=1e-4)
    slow.encode_page(job(made), raw(made), None, lambda: calls.append(1))
    assert len(calls) == 3  # one a layer group
    assert store.leases >= 3
    assert store.lease(SCOPE, made.keys[0], 1) is not None  # and none is left behind
    store.leases = 0
    encoder(store).encode_page(job(made, 1), raw(made, 1))
    assert store.leases == 1  # quick work need not ask again


def test_forgotten_on_its_way() -> None:
    """Whether the model, the tenant or the prompt is forgotten, and whether before or while its
    encoder is at work."""
    made = prompt(group_layers=1)
    for forget in (
        lambda store: store.forget(SCOPE, made.spec.namespace),
        lambda store: store.forget(SCOPE),
        lambda store: store.forget_pages(SCOPE, made.keys[:1]),
    ):
        store = MemoryStore()
        waiting = job(made)
        forget(store)
        with pytest.raises(errors.Forgotten):
            encoder(store).encode_page(waiting, raw(made))
        at_work = replace(job(made), began_us=now_us() + 1_000_000)
        assert encoder(store).encode_page(at_work, raw(made)).outcome is Outcome.STORED

        store = MemoryStore()
        calls: list[int] = []

        def once(
            store: MemoryStore = store, calls: list[int] = calls, forget: Any = forget
        ) -> None:
            if not calls:
                forget(store)
            calls.append(1)

        with contextlib.suppress(errors.Forgotten):
            encoder(store).encode_page(job(made), raw(made), None, once)
        assert len(calls) == 3
        assert store.match(SCOPE, made.spec.namespace, made.keys).present == [False, False]


def test_a_quota_of_bytes() -> None:
    made, store = prompt(), MemoryStore()
    few = replace(job(made), max_stored_bytes=1)
    assert encoder(store).encode_page(few, raw(made)).outcome is Outcome.STORED
    with pytest.raises(errors.QuotaExceeded, match="max_stored_bytes"):
        encoder(store).encode_page(replace(job(made, 1), max_stored_bytes=1), raw(made, 1))
    store.discard(SCOPE, made.keys)  # as if it had expired
    again = replace(job(made, 1), max_stored_bytes=1)
    assert encoder(store).encode_page(again, raw(made, 1)).outcome is Outcome.STORED
