"""Long prompts against the real services, by parts that are small enough for a test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lexico_client import AsyncClient, _load, _match, _offload, _parts
from lexico_codec.keys import page_keys
from lexico_codec.spec import make_spec
from lexico_services.config import ReloadConfig
from tests.support.client_fixtures import (
    PAGE_TOKENS,
    PATIENT,
    Landing,
    random_cache,
    small_spec,
    views_of,
)
from tests.support.services import running_services
from tests.support.uploads import SCOPE

PAGES = 11
TOKENS = list(range(100, 100 + PAGES * PAGE_TOKENS + 3))


@pytest.mark.parametrize("codec", ["raw", "lossless"])
async def test_offloaded_and_loaded_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    """The server takes 4 pages in a call, and each Put begins where the one before it ended."""
    for module in (_match, _load):
        monkeypatch.setattr(module, "parts", lambda pages, most=4: _parts.parts(pages, most))
    monkeypatch.setattr(_offload, "pages_of_put", lambda spec: 4)
    monkeypatch.setattr(_parts, "CHAIN_BYTES", 0)
    like = small_spec()
    spec = make_spec(
        weights=like.weights, geometry=like.geometry, codec=codec, page_tokens=PAGE_TOKENS
    )
    cache, landing = random_cache(spec, PAGES), Landing(spec)
    async with running_services(reload=ReloadConfig(max_pages=4)) as services:
        async with AsyncClient(
            reload=services.reload_address,
            offload=services.offload_address,
            dictionaries_dir=tmp_path,
            timeouts=PATIENT,
        ) as client:
            report = await client.offload(spec, TOKENS, views_of(spec, cache))
            assert report.pages == ("stored",) * PAGES
            assert all(services.store.present(SCOPE, page_keys(spec, TOKENS)))
            loaded = await client.load(spec, TOKENS, landing)
            assert (loaded.pages, loaded.reason) == (PAGES, None)
            assert torch.equal(landing.cache, cache)
            gone = page_keys(spec, TOKENS)[6]
            services.store.discard(SCOPE, [gone])
            assert (await client.load(spec, TOKENS, landing)).pages == 6
            again = await client.offload(spec, TOKENS, views_of(spec, cache))
            assert [again.pages.index("stored"), again.pages.count("stored")] == [6, 1]
            assert (await client.match(spec, TOKENS)).pages == PAGES
