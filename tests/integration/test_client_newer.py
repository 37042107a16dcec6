"""Pages of a later version in the store, between this client and this service."""

from __future__ import annotations

from pathlib import Path

from lexico_client import AsyncClient
from lexico_codec.keys import page_keys
from lexico_proto import errors
from lexico_services.auth import DEFAULT_TENANT
from lexico_store.scopes import tenant_scope
from tests.support.client_fixtures import TOKENS, Landing, random_cache, small_spec, views_of
from tests.support.newer_frames import of_codec, of_version
from tests.support.services import running_services

SPEC = small_spec()
CACHE = random_cache(SPEC, 4)


async def test_a_newer_page_behind_the_service(tmp_path: Path) -> None:
    """Misses, not damage: the page stays, and the next offload finds it present."""
    async with running_services() as services:
        client = AsyncClient(
            reload=services.reload_address,
            offload=services.offload_address,
            dictionaries_dir=tmp_path,
        )
        async with client:
            await client.offload(SPEC, TOKENS, views_of(SPEC, CACHE))
            key, scope = page_keys(SPEC, TOKENS)[1], tenant_scope(DEFAULT_TENANT)
            page = services.store.read_page(scope, key)
            assert page is not None
            for change, reason in ((of_version, errors.NewerFrame), (of_codec, errors.NewerFrame)):
                frames = [change(frame, 999) for frame in page]
                services.store.commit(scope, key, frames, 60)
                loaded = await client.load(SPEC, TOKENS, Landing(SPEC))
                assert (loaded.pages, type(loaded.reason)) == (1, reason)
                report = await client.offload(SPEC, TOKENS, views_of(SPEC, CACHE))
                assert report.pages == ("present",) * 4
                kept = services.store.read_page(scope, key)
                assert kept is not None
                assert kept == frames
