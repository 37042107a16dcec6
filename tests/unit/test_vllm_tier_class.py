"""The class that vLLM loads as a tier, over as much of vLLM as it imports."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lexico_client import AsyncClient, InMemoryTransport
from lexico_client.engines.vllm.tier._config import TierConfig
from lexico_client.engines.vllm.tier._told import engine_config, telling
from lexico_codec.geometry import Geometry
from lexico_proto.errors import ConfigurationError, Unsupported
from tests.support.client_fixtures import PATIENT
from tests.support.saved_model import save_tiny
from tests.support.vllm_tier_fakes import vllm_of
from tests.support.vllm_tiers import PrimaryTier, chunk_shape, engine_told, told
from tests.support.waiting import wait_until
from tests.unit.test_vllm_config import config as vllm_config

TINY = Geometry(layers=2, kv_heads=2, head_dim=8, dtype="float32")
HERE = {"reload": "127.0.0.1:7412", "offload": "127.0.0.1:7411", "codec": "lossless"}
KEYS = [hashlib.sha256(bytes([i])).digest() + bytes(4) for i in range(3)]

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes tiers that share a service, and the primary tiers above them."""
    transport, made = InMemoryTransport(), []

    def client(_: TierConfig) -> AsyncClient:
        return AsyncClient(transport=transport, timeouts=PATIENT, dictionaries_dir=tmp_path)

    monkeypatch.setattr(TierConfig, "client", client)
    with vllm_of() as tier:

        def tiers(engine: Any = None, **settings: Any) -> tuple[Any, PrimaryTier]:
            primary = PrimaryTier(chunk_shape(TINY), 6)
            rows: Any = np.asarray(primary.rows)
            spec = SimpleNamespace(config=told(folder, TINY))
            with telling(engine or engine_told(vllm_config(folder))):
                made.append(tier(spec, memoryview(rows), "LexicoTier", **{**HERE, **settings}))
            return made[-1], primary

        yield tiers
    for each in made:
        each.shutdown()


def job(number: int, slots: list[int], names: list[bytes] = KEYS) -> Any:
    """A `TransferJob`."""
    return SimpleNamespace(job_id=number, keys=names, chunk_ids=np.array(slots, np.int32))


def result(tier: Any) -> Any:
    found: list[Any] = []

    def ended() -> list[Any]:
        found.extend(tier.get_finished_jobs())
        return found

    wait_until(ended, "a job to end")
    assert len(found) == 1
    return found[0]


def looked_up(tier: Any, key: bytes) -> str:
    context, said = SimpleNamespace(req_id="a"), ["RETRY"]

    def answered() -> bool:
        said[0] = tier.lookup(key, context).name
        tier.on_schedule_end(None)
        return said[0] != "RETRY"

    wait_until(answered, "an answer")
    return said[0]


def test_chunks_go_through_the_primary_tiers_of_two_engines(make: Make) -> None:
    (one, here), (other, there) = make(), make()
    generator = torch.Generator().manual_seed(0)
    cache = torch.randn((3, 2, 2, 32, 2, 8), generator=generator)
    for slot, each in zip((4, 0, 2), cache, strict=True):
        here.compute(slot, each)
    one.submit_store(job(7, [4, 0, 2]))
    ended = result(one)
    assert (ended.job_id, ended.success) == (7, True)
    assert ended.transfer_bytes == 3 * chunk_shape(TINY).bytes
    assert ended.transfer_time > 0
    assert [looked_up(other, key) for key in (*KEYS, bytes(36))] == ["HIT"] * 3 + ["MISS"]
    other.submit_load(job(0, [1, 3, 5]))
    ended = result(other)
    assert (ended.success, set(ended.successful_keys)) == (True, set(KEYS))
    found = torch.stack([there.computed(slot) for slot in (1, 3, 5)])
    assert torch.equal(found, cache)
    other.on_request_finished(SimpleNamespace(req_id="a"))


def test_a_load_that_fails_says_which_chunks_came(make: Make) -> None:
    tier, primary = make(concurrent_loads=1)
    primary.compute(0, torch.zeros((2, 2, 32, 2, 8)))
    tier.submit_store(job(1, [0], KEYS[:1]))
    assert result(tier).success
    tier.submit_load(job(2, [1, 2, 3]))
    ended = result(tier)
    assert (ended.success, ended.successful_keys) == (False, (KEYS[0],))
    tier.submit_load(job(3, [1], KEYS[1:2]))
    assert result(tier).successful_keys is None


def test_what_was_counted_goes_to_vllm_once(make: Make) -> None:
    tier, _ = make()
    tier.get_stats()  # what the tests before it counted in this process
    assert looked_up(tier, KEYS[0]) == "MISS"
    tier.on_request_finished(SimpleNamespace(req_id="a"))
    counted = tier.get_stats().counters
    assert counted["lexico_engine_requests_total miss"] == 1
    assert tier.get_stats() is None
    defined = type(tier).build_metric_definitions({})
    assert {name.split(" ")[0] for name in counted} <= set(defined)
    assert defined["lexico_engine_requests_total"].labelnames == ("outcome",)


def test_a_defect_of_a_lookup_is_a_miss(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tier, _ = make()

    def broken(key: bytes, request: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(tier._side.lookups, "lookup", broken)
    assert tier.lookup(KEYS[0], SimpleNamespace(req_id="a")).name == "MISS"


def test_a_seed_is_spoken_of_and_not_told(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "4711")
    with caplog.at_level(logging.INFO, "vllm.lexico"):
        make()
    assert "PYTHONHASHSEED is set" in caplog.text
    assert "4711" not in caplog.text


def test_what_the_engine_is_cannot_be_unknown(make: Make, folder: Path) -> None:
    with pytest.raises(Unsupported, match="xxhash"):
        make(engine_told(vllm_config(folder), algorithm="xxhash"))
    with pytest.raises(ConfigurationError, match="codek: unknown"):
        make(codek="near")
    with pytest.raises(ConfigurationError, match="codec: "):
        make(codec="nothing")
    assert engine_config() is None


def test_a_vllm_whose_tiers_moved_is_refused_at_import() -> None:
    with (
        pytest.raises(Unsupported, match=r"lookup\(self, keys\) was"),
        vllm_of(lookup=["self", "keys"]),
    ):
        pytest.fail("it was imported")
    with pytest.raises(Unsupported, match=r"vllm 0\.31\.0"), vllm_of("0.31.0"):
        pytest.fail("it was imported")
