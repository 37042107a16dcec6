"""A fleet is upgraded part by part: nodes, servers, frames, sets of the last release beside ours.

For each codec, a page goes up by either client through either server, and comes down by either
reload server to either client; all of it over one store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lexico_client import AsyncClient
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import InvalidInput, Unsupported
from lexico_store import open_store
from tests.support.client_fixtures import (
    PATIENT,
    TOKENS,
    Landing,
    random_cache,
    small_dictionary,
    small_spec,
    views_of,
)
from tests.support.groups import bits
from tests.support.last_release import Peer, running_peer, unpacked
from tests.support.servers import RedisServer, redis_server
from tests.support.services import Services, running_services

PAGES = 4
CODECS = ("raw", "lossless", "lexico", "lexico-adaptive")
SETS = sorted(Path(__file__).parents[2].glob("lexico_codec/sets/*.safetensors"))
SET = small_dictionary()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def peer(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    tree = unpacked(tmp_path_factory.mktemp("last"))
    with running_peer(tree, redis.url, tmp_path_factory.mktemp("sets")) as running:
        yield running


@pytest.fixture
async def services(redis: RedisServer) -> AsyncIterator[Services]:
    with open_store(redis.url) as store:
        async with running_services(store) as running:
            yield running


def spec_of(codec: str, salt: int) -> CacheSpec:
    """A spec whose pages nobody else has."""
    spec = small_spec(codec=codec, dictionary=SET.digest if codec.startswith("lexico") else b"")
    return CacheSpec(**{**vars(spec), "weights": bytes([salt] * 32)})


def plain(spec: CacheSpec) -> dict[str, Any]:
    """A spec as the peer reads it."""
    geometry = spec.geometry
    return {
        "weights": spec.weights.hex(),
        "geometry": [geometry.layers, geometry.kv_heads, geometry.head_dim, geometry.dtype],
        "codec": spec.codec.name,
        "config": spec.codec.config_json(),
        "dictionary": spec.dictionary.hex(),
        "page_tokens": spec.page_tokens,
        "group_layers": spec.group_layers,
        "shape": list(random_cache(spec, PAGES).shape),
    }


def addresses(services: Services) -> list[str]:
    return [services.reload_address, services.offload_address]


async def test_specs_and_sets_are_the_same(peer: Peer) -> None:
    for codec in CODECS:
        spec = spec_of(codec, 0)
        assert await peer.ask("namespace", spec=plain(spec)) == spec.namespace.hex()
    assert SETS
    for path in SETS:
        assert await peer.ask("set_digest", path=str(path)) == DictionarySet.load(path).digest.hex()


async def test_slices_at_an_ingress_that_puts_none_together(peer: Peer, tmp_path: Path) -> None:
    """It takes a slice for a page of another namespace, and says so; the client says what to do."""
    reload, offload = await peer.ask("addresses")
    part = spec_of("lossless", 77).held_by(range(2), range(3))
    async with AsyncClient(
        reload=reload, offload=offload, dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        with pytest.raises(Unsupported, match="of an earlier release, upgrade it"):
            await client.offload(
                part, TOKENS, views_of(part, random_cache(part, PAGES)), assembly=bytes(16)
            )


@pytest.mark.parametrize("codec", ["lossless", "lexico"])
async def test_a_cache_in_eight_bits_at_servers_that_know_none(
    codec: str, peer: Peer, services: Services, tmp_path: Path
) -> None:
    """Refused by its name where it is stored, a miss where it is loaded, and no damage."""
    made = spec_of(codec, 97 if codec == "lossless" else 96)
    spec = replace(made, geometry=replace(made.geometry, dtype="float8_e4m3fn"))
    cache, landing = random_cache(spec, PAGES), Landing(spec)
    async with (
        node(await peer.ask("addresses"), tmp_path) as former,
        node(addresses(services), tmp_path) as ours,
    ):
        if spec.codec.needs_dictionary:
            await ours.register_dictionary(SET)
        with pytest.raises(InvalidInput, match="dtype code 4 is unknown"):
            await former.offload(spec, TOKENS, views_of(spec, cache))
        assert (await former.match(spec, TOKENS)).pages == 0
        assert (await former.load(spec, TOKENS, landing)).pages == 0
        await ours.offload(spec, TOKENS, views_of(spec, cache))
        assert (await ours.load(spec, TOKENS, landing)).pages == PAGES
        if spec.codec.lossless:
            assert torch.equal(bits(landing.cache), bits(cache))


async def test_explain_at_a_server_that_lists_no_namespaces(peer: Peer, tmp_path: Path) -> None:
    spec = spec_of("raw", 99)
    async with node(await peer.ask("addresses"), tmp_path) as client:
        await client.offload(spec, TOKENS, views_of(spec, random_cache(spec, PAGES)), pages=1)
        explained = await client.explain(spec, TOKENS)
    assert (explained.match.pages, explained.first_absent) == (1, 1)
    assert isinstance(explained.untold, Unsupported)
    assert "of a release that does not list namespaces" in explained.text()


async def test_a_model_without_a_set_at_a_server_that_knows_no_published_ones(
    peer: Peer, services: Services, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = spec_of("lossless", 98)
    cache, landing = random_cache(base, PAGES), Landing(base)
    async with node(await peer.ask("addresses"), tmp_path) as client:
        coding = await client.coding(base, "paper")
        assert coding.waiting
        with pytest.raises(Unsupported):
            await client.publish_dictionary(SET, base)
        spec, timeout = await client.spec_to_load(coding, base, TOKENS)
        await client.offload(spec, TOKENS, views_of(spec, cache))
        assert (await client.load(spec, TOKENS, landing, timeout=timeout)).pages == PAGES
        assert torch.equal(landing.cache, cache)
    (line,) = [r.getMessage() for r in caplog.records if "running lossless" in r.getMessage()]
    assert "a server of an earlier release?" in line
    async with node(addresses(services), tmp_path) as client:  # the server is upgraded
        await client.publish_dictionary(SET, base)
        assert (await client.coding(base, "paper")).spec(base).dictionary == SET.digest


@pytest.mark.parametrize("codec", CODECS)
async def test_every_way_up_and_down(
    codec: str, peer: Peer, services: Services, tmp_path: Path
) -> None:
    former, ours = await peer.ask("addresses"), addresses(services)
    set_path = tmp_path / "set.safetensors"
    set_path.write_bytes(SET.to_bytes())
    for salt, (client, servers) in enumerate(
        (c, s) for c in ("former", "ours") for s in (former, ours)
    ):
        spec = spec_of(codec, salt)
        cache = random_cache(spec, PAGES, seed=salt)
        async with node(ours, tmp_path) as mine, node(former, tmp_path) as crossed:
            at = mine if servers is ours else crossed
            if spec.codec.needs_dictionary:
                await at.register_dictionary(SET)
            if client == "former":
                torch.save(cache, tmp_path / "up.pt")
                outcomes = await peer.ask(
                    "offload",
                    addresses=servers,
                    spec=plain(spec),
                    tokens=list(TOKENS),
                    cache=str(tmp_path / "up.pt"),
                )
            else:
                outcomes = (await at.offload(spec, TOKENS, views_of(spec, cache))).pages
            assert list(outcomes) == ["stored"] * PAGES

            landings = []
            for reader in (mine, crossed):
                landing = Landing(spec)
                loaded = await reader.load(spec, TOKENS, landing)
                assert (loaded.pages, loaded.reason) == (PAGES, None)
                landings.append(landing.cache)
        for index, reload in enumerate((former, ours)):
            out = tmp_path / f"down{index}.pt"
            came = await peer.ask(
                "load", addresses=reload, spec=plain(spec), tokens=list(TOKENS), out=str(out)
            )
            assert came == [PAGES, None]
            landings.append(torch.load(out))
        assert all(torch.equal(landings[0], other) for other in landings[1:])
        if spec.codec.lossless:
            assert torch.equal(landings[0], cache)


async def test_what_servers_say_of_themselves(
    peer: Peer, services: Services, tmp_path: Path
) -> None:
    """The last release does not say, which is an answer."""
    async with node(addresses(services), tmp_path) as client:
        described = await client.describe()
    assert described.reload is not None
    assert described.reload == described.offload
    assert not described.refusals("lossless")
    async with node(await peer.ask("addresses"), tmp_path) as client:
        described = await client.describe()
    assert (described.reload, described.offload) == (None, None)
    assert not described.refusals("lossless")


def node(servers: list[str], folder: Path) -> AsyncClient:
    reload, offload = servers
    return AsyncClient(
        reload=reload, offload=offload, dictionaries_dir=folder / "sets", timeouts=PATIENT
    )
