"""The class that SGLang loads, over as much of SGLang as it imports: both of its interfaces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lexico_client import AsyncClient, InMemoryTransport
from lexico_client.engines.sglang._config import StorageConfig
from lexico_proto.errors import ConfigurationError, Unsupported
from tests.support.client_fixtures import PATIENT
from tests.support.saved_model import save_tiny
from tests.support.sglang_fakes import sglang_of
from tests.support.sglang_pools import HostPool, started_with

KEYS = [hashlib.sha256(bytes([i])).hexdigest() for i in range(3)]
EXTRA = {
    "backend_name": "lexico",
    "module_path": "lexico_client.engines.sglang",
    "class_name": "LexicoStorage",
    "interface_v1": 1,
    "reload": "127.0.0.1:7412",
    "offload": "127.0.0.1:7411",
    "codec": "lossless",
}

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes backends that share a service."""
    transport, made = InMemoryTransport(), []

    def client(_: StorageConfig) -> AsyncClient:
        return AsyncClient(transport=transport, timeouts=PATIENT, dictionaries_dir=tmp_path)

    context = SimpleNamespace(config_leaf=started_with(folder).__getitem__)
    monkeypatch.setattr(StorageConfig, "client", client)
    with sglang_of(context) as storage:

        def backend(pool: HostPool | None = None, **changes: Any) -> Any:
            told = {
                "tp_size": 1,
                "pp_size": 1,
                "attn_cp_size": 1,
                "dcp_size": 1,
                "is_mla_model": False,
                "tp_lcm_size": None,
                "enable_storage_metrics": False,
                "extra_config": EXTRA,
            }
            made.append(storage(SimpleNamespace(**{**told, **changes}), {}))
            if pool is not None:
                made[-1].register_mem_pool_host(pool)
            return made[-1]

        yield backend
    for each in made:
        each.close()


def pool(layout: str = "page_first_direct") -> HostPool:
    """That of the tiny model."""
    return HostPool(layout, layer_num=2, head_num=2, head_dim=8)


def computed(engine: HostPool, *pages: int) -> torch.Tensor:
    cache = torch.randn(len(pages), 2, 2, 16, 2, 8, generator=torch.Generator().manual_seed(1))
    for page, each in zip(pages, cache, strict=True):
        engine.compute(page, each)
    return cache


def test_pages_go_through_the_pools_of_two_engines(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pool(), pool("layer_first")
    backend, second = make(one), make(other)
    cache = computed(one, 4, 0, 7)
    assert backend.batch_set_v1(KEYS, one.slots(4, 0, 7), None) == [True] * 3
    assert second.batch_exists([*KEYS, "ab" * 32]) == 3
    asked: list[bool] = []

    def noted(hashes: object, *, newest: bool) -> int:
        asked.append(newest)
        return 1

    monkeypatch.setattr(second._side, "exists", noted)
    for count in (1, 3, 4, 5):  # four are asked for at a time: fewer are a prompt's last
        second.batch_exists((KEYS * 2)[:count])
    assert second.exists(KEYS[0])
    assert asked == [True, True, False, False, False]
    monkeypatch.undo()
    assert [second.exists(key) for key in (KEYS[2], "ab" * 32)] == [True, False]
    assert second.batch_get_v1(KEYS, other.slots(1, 2, 3)) == [True] * 3
    assert torch.equal(torch.stack([other.computed(page) for page in (1, 2, 3)]), cache)


@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct", "page_head"])
def test_pages_by_themselves_are_those_of_the_pool(make: Make, layout: str) -> None:
    """What SGLang copied out of a pool is found by an engine that reads its own, and back."""
    one, other = pool(layout), pool("page_first")
    backend, second = make(one), make(other)
    cache = computed(one, 4, 0)
    assert backend.batch_set(KEYS[:2], [one.get_data_page(4 * 16), one.get_data_page(0)])
    assert second.batch_get_v1(KEYS[:2], other.slots(1, 2)) == [True] * 2
    assert torch.equal(torch.stack([other.computed(page) for page in (1, 2)]), cache)
    room = [one.get_dummy_flat_data_page() for _ in KEYS]
    found = backend.batch_get(KEYS, room)
    assert [each is None for each in found] == [False, False, True]
    assert torch.equal(found[0], one.get_data_page(4 * 16))
    assert torch.equal(backend.get(KEYS[1]), one.get_data_page(0))
    assert backend.set(KEYS[2], one.get_data_page(0))
    assert backend.get(KEYS[2], room[2]) is room[2]


def test_what_cannot_be_done_is_a_miss(make: Make) -> None:
    """Before there is a pool, with keys that are no hashes, and with slots that are no pages."""
    early = make()
    assert early.batch_exists(KEYS) == 0
    assert early.batch_get_v1(KEYS, torch.arange(48)) == [False] * 3
    assert early.batch_set_v1(KEYS, torch.arange(48)) == [False] * 3
    engine = pool()
    computed(engine, 0)
    backend = make(engine)
    assert backend.batch_exists(["no hash"]) == 0
    assert backend.batch_set_v1(["no hash"], engine.slots(0)) == [False]
    assert backend.batch_set_v1(KEYS[:1], torch.arange(3, 19)) == [False]
    assert backend.batch_set(KEYS[:1], [torch.zeros(3)]) is False
    assert backend.batch_set(KEYS[:1]) is False


def test_once_cleared_nothing_of_before_is_found(make: Make) -> None:
    engine = pool()
    computed(engine, 0)
    backend, other = make(engine), make(pool())
    backend.batch_set_v1(KEYS[:1], engine.slots(0))
    backend.clear()
    assert backend.batch_exists(KEYS[:1]) == 0
    assert other.batch_exists(KEYS[:1]) == 1
    backend.batch_set_v1(KEYS[:1], engine.slots(0))
    assert backend.batch_exists(KEYS[:1]) == 1


def test_the_start_is_refused_with_one_line(make: Make) -> None:
    with pytest.raises(ConfigurationError, match="codek: unknown"):
        make(extra_config={**EXTRA, "codek": "near"})
    with pytest.raises(Unsupported, match="tp_size=2"):
        make(tp_size=2)
    with pytest.raises(ConfigurationError, match=r"extra_config: codec: codec 'zip'"):
        make(pool(), extra_config={**EXTRA, "codec": "zip"})
    with pytest.raises(ConfigurationError, match=r"extra_config: codec: .*needs a set trained"):
        make(pool(), extra_config={**EXTRA, "codec": "near", "without_set": "refuse"})
    backend = make(pool())
    backend.register_mem_host_pool_v2(backend.mem_pool_host, "kv")
    with pytest.raises(Unsupported, match="host pool mamba: only models whose layers all have"):
        backend.register_mem_host_pool_v2(pool(), "mamba")


def test_a_release_that_is_too_old_is_refused_at_import(folder: Path) -> None:
    with pytest.raises(Unsupported, match=r"sglang 0\.5\.22: the backend needs 0\.5\.23"):
        with sglang_of(None, version="0.5.22"):
            pass
