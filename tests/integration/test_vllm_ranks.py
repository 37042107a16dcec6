"""Engines of one and of several ranks over the real service: each loads what any other stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from torch import Tensor

from lexico_codec.geometry import Geometry
from lexico_codec.keys import page_keys
from lexico_codec.pages import encode_group
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import ENGINE_PAGES, ENGINE_TOKENS, PAGES, SLICED_PAGES
from lexico_services.auth import DEFAULT_TENANT
from lexico_store.scopes import tenant_scope
from tests.support.client_fixtures import small_dictionary
from tests.support.vllm_fakes import BLOCK_TOKENS, PAGE_TOKENS, engine_spec
from tests.support.vllm_ranks import THERE, RankedEngine
from tests.support.vllm_service import EngineService, engine_service

WAYS: Final = {"tp1": (1, 1), "tp2": (2, 1), "tp4": (4, 1), "pp2": (1, 2)}
GEOMETRY: Final = Geometry(layers=3, kv_heads=4, head_dim=8, dtype="float32")
SPEC: Final = engine_spec(geometry=GEOMETRY, group_layers=2)
TOKENS: Final = 4 * PAGE_TOKENS
IDS: Final = np.arange(100, 100 + TOKENS, dtype="<u4")
PROMPT: Final[list[int]] = IDS.tolist()


@pytest.fixture(scope="module")
def service() -> Iterator[EngineService]:
    with engine_service() as made:
        yield made


@pytest.fixture(scope="module")
def engines(
    service: EngineService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, RankedEngine]]:
    folder = tmp_path_factory.mktemp("sets")
    made = {way: engine(service, SPEC, WAYS[way], folder) for way in WAYS}
    yield made
    for each in made.values():
        each.close()


def engine(
    service: EngineService, spec: CacheSpec, way: tuple[int, int], folder: Path, **options: object
) -> RankedEngine:
    return RankedEngine(
        spec,
        *way,
        folder,
        reload=service.settings["reload"],
        offload=service.settings["offload"],
        **options,  # type: ignore[arg-type]
    )


def computed(seed: int, geometry: Geometry = GEOMETRY) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (geometry.layers, 2, TOKENS, geometry.kv_heads, geometry.head_dim)
    return torch.randn(shape, generator=generator)


def frames(service: EngineService, spec: CacheSpec, page: int) -> list[bytes]:
    """Of a page in the store."""
    key, scope = page_keys(spec, IDS)[page], tenant_scope(DEFAULT_TENANT)
    found = [service.store.read(scope, [key], group)[0] for group in range(spec.groups)]
    return [bytes(frame) for frame in found if isinstance(frame, bytes)]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_split_a_model_loads_what_one_stored(
    way: str, engines: dict[str, RankedEngine], service: EngineService
) -> None:
    salt, cache = way.encode(), computed(len(way))
    spec = engine_spec(geometry=GEOMETRY, group_layers=2, salt=salt)
    engines[way].store(IDS, cache, salt)
    for page in range(4):
        part = cache[:, :, page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS]
        assert frames(service, spec, page) == [
            encode_group(spec, page_keys(spec, IDS)[page], page, group, part[layers])
            for group, layers in enumerate((slice(0, 2), slice(2, 3)))
        ]
    for other in engines.values():
        # Not from the beginning, nor to the end of a page: blocks at both edges are others'.
        first, stop = BLOCK_TOKENS, TOKENS - BLOCK_TOKENS
        before = computed(99)
        for worker in other.workers:
            worker.write(before, THERE)
        assert other.load(IDS, first, stop, salt) == [set()] * len(other.workers)
        before[:, :, first:stop] = cache[:, :, first:stop]
        for worker in other.workers:
            assert torch.equal(worker.read(0, TOKENS), worker.own(before))


def test_all_ranks_compute_from_where_one_of_them_lost_a_page(
    engines: dict[str, RankedEngine], service: EngineService
) -> None:
    """A block that any rank lacks is told, and is computed by all."""
    spec = engine_spec(geometry=GEOMETRY, group_layers=2, salt=b"damaged")
    engines["tp2"].store(IDS, computed(7), b"damaged")
    service.damage(spec, PROMPT, 2)
    for name in ("tp4", "pp2"):
        lost = engines[name].load(IDS, 0, TOKENS, b"damaged")
        assert set.union(*lost) == set(THERE[4:])
        engines["tp2"].store(IDS, computed(7), b"damaged", b"one more computation")
        service.damage(spec, PROMPT, 2)
    counted = engines["pp2"].counted(ENGINE_TOKENS)
    assert counted["lost"] == 2 * 2 * PAGE_TOKENS  # each rank counts


def test_what_one_rank_does_not_send_is_not_stored(
    engines: dict[str, RankedEngine], service: EngineService
) -> None:
    """Its copies did not fit: leading pages alone are whole."""
    tp2, salt = engines["tp2"], b"short"
    spec = engine_spec(geometry=GEOMETRY, group_layers=2, salt=salt)
    lame = tp2.workers[1].side
    most, lame._most = lame._most, spec.page_bytes // 2
    before = service.counts(SLICED_PAGES).get(("whole",), 0)
    tp2.store(IDS, computed(8), salt)
    lame._most = most
    assert service.stored(spec, PROMPT) == 1
    assert service.counts(SLICED_PAGES)[("whole",)] == before + 1
    assert service.services.ingress.partial.waiting == 3
    assert tp2.counted(ENGINE_PAGES)["dropped"] == 3
    tp2.store(IDS, computed(8), salt, b"one more computation")
    assert service.stored(spec, PROMPT) == 4


def test_ranks_that_hold_the_same_head_send_it_once(service: EngineService, tmp_path: Path) -> None:
    geometry = Geometry(layers=2, kv_heads=2, head_dim=8, dtype="float32")
    spec = engine_spec(geometry=geometry, salt=b"same heads")
    made = engine(service, spec, (4, 1), tmp_path)
    cache = computed(9, geometry)
    made.store(IDS, cache, b"same heads")
    assert service.stored(spec, PROMPT) == 4
    assert made.counted(ENGINE_PAGES) == {"sent": 2 * 4}
    assert made.load(IDS, 0, TOKENS, b"same heads") == [set()] * 4
    for worker in made.workers:
        assert torch.equal(worker.read(0, TOKENS), worker.own(cache))
    made.close()


def test_a_lossy_codec_codes_all_heads_of_a_token(service: EngineService, tmp_path: Path) -> None:
    """And the set that it takes, which nobody registered, is there before the first slice."""
    dictionary = small_dictionary(layers=3, head_dim=8, kv_heads=4)
    spec = engine_spec(
        "lexico", geometry=GEOMETRY, group_layers=2, dictionary=dictionary.digest, salt=b"lossy"
    )
    made = engine(service, spec, (2, 2), tmp_path, dictionary=dictionary)
    cache = computed(10)
    before = service.counts(PAGES).get(("stored",), 0)
    made.store(IDS, cache, b"lossy")
    assert service.counts(PAGES)[("stored",)] == before + 4
    part, key = cache[:, :, : 2 * PAGE_TOKENS], page_keys(spec, IDS)[1]
    assert frames(service, spec, 1)[0] == encode_group(
        spec, key, 1, 0, part[:2, :, PAGE_TOKENS:], dictionary
    )
    assert made.load(IDS, 0, TOKENS, b"lossy") == [set()] * 4
    made.close()
