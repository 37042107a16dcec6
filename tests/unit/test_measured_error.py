"""The error of codes, of one page in many; and leases, as encoders count them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lexico_codec.pages import decode_group
from lexico_codec.pieces import Piece
from lexico_proto import metrics as m
from lexico_store import MemoryStore
from lexico_store.scopes import SHARED_SCOPE
from lexico_worker import measured_error
from lexico_worker.page_encoder import Outcome, PageEncoder, PageJob
from tests.support.dictionaries import random_set
from tests.support.services import Prompt, prompt

SCOPE = b"tenant-of-a-test"


def coded(pages: int, group_layers: int = 3) -> tuple[Prompt, MemoryStore]:
    dictionary, store = random_set(layers=3, head_dim=8, atoms=16, kv_heads=2), MemoryStore()
    store.put_dictionary(SHARED_SCOPE, dictionary.digest, dictionary.to_bytes())
    made = prompt(
        pages=pages,
        codec="lexico",
        codec_config='{"sparsity":2}',
        dictionary=dictionary.digest,
        group_layers=group_layers,
    )
    return made, store


def encode(pages: PageEncoder, made: Prompt, page: int) -> Outcome:
    raw: list[Piece] = [np.frombuffer(made.data(page), np.uint8)]
    return pages.encode_page(PageJob(SCOPE, made.spec, page, made.keys[page]), raw).outcome


def test_the_error_is_that_of_what_is_decoded() -> None:
    made, store = coded(pages=1)
    metrics = m.Metrics()
    pages = PageEncoder(store, page_ttl_s=60, lease_ttl_s=30, error_every=1, metrics=metrics)
    assert encode(pages, made, 0) is Outcome.STORED
    frame = store.read(SCOPE, made.keys, 0)[0]
    assert isinstance(frame, bytes)
    source, out = made.pages[0][0], torch.empty_like(made.pages[0][0])
    dictionary = random_set(layers=3, head_dim=8, atoms=16, kv_heads=2)
    decode_group(made.spec, made.keys[0], 0, 0, frame, out, dictionary)
    expected = float((out - source).double().norm() / source.double().norm())
    found = metrics.distributions()[m.RELATIVE_ERROR]["lexico",]
    assert found.total == pytest.approx(expected, rel=1e-6)
    assert 0 < expected < 1


def test_one_page_in_many_is_measured_group_after_group(monkeypatch: pytest.MonkeyPatch) -> None:
    made, store = coded(pages=9, group_layers=1)
    measured: list[tuple[int, int]] = []
    monkeypatch.setattr(
        measured_error,
        "decode_group",
        lambda spec, key, page, group, *_: measured.append((page, group)),
    )
    metrics = m.Metrics()
    pages = PageEncoder(store, page_ttl_s=60, lease_ttl_s=30, error_every=2, metrics=metrics)
    for page in range(9):
        encode(pages, made, page)
    assert measured == [(0, 0), (2, 1), (4, 2), (6, 0), (8, 1)]


def test_a_page_is_stored_whatever_becomes_of_its_measure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(measured_error, "decode_group", fails)
    made, store = coded(pages=1)
    metrics = m.Metrics()
    pages = PageEncoder(store, page_ttl_s=60, lease_ttl_s=30, error_every=1, metrics=metrics)
    assert encode(pages, made, 0) is Outcome.STORED
    assert "error not measured page=0 group=0" in caplog.text
    assert metrics.distributions() == {}


@pytest.mark.parametrize(("codec", "every"), [("raw", 1), ("lossless", 1), ("lexico", 0)])
def test_what_has_no_error_is_not_measured(codec: str, every: int) -> None:
    metrics = m.Metrics()
    made, store = coded(pages=1) if codec == "lexico" else (prompt(codec=codec), MemoryStore())
    pages = PageEncoder(store, page_ttl_s=60, lease_ttl_s=30, error_every=every, metrics=metrics)
    assert encode(pages, made, 0) is Outcome.STORED
    assert metrics.distributions() == {}


def test_leases_are_counted() -> None:
    made, store = prompt(), MemoryStore()
    metrics = m.Metrics()
    pages = PageEncoder(store, page_ttl_s=60, lease_ttl_s=30, metrics=metrics)
    assert encode(pages, made, 0) is Outcome.STORED
    assert encode(pages, made, 0) is Outcome.PRESENT
    lease = store.lease(SCOPE, made.keys[1], 30, b"another" * 2)
    assert lease is not None
    assert encode(pages, made, 1) is Outcome.IN_PROGRESS
    leases = metrics.snapshot()[m.LEASES]
    assert leases == {("taken",): 1, ("held",): 1, ("renewed",): 0}
