"""Ray Serve's own autoscaler starts encoders under load and ends them again: nothing is lost.

Minutes of two processors: `make test-scale`, and no part of `make test`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

import psutil
import pytest
import torch

from examples.two_nodes.service import Service
from lexico_client import AsyncClient, PageOutcome
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group, encode_group
from lexico_codec.sets.builtin import load_builtin
from lexico_codec.spec import CacheSpec
from tests.support.client_fixtures import PATIENT
from tests.support.held_cache import Cache, spec_of
from tests.support.waiting import PATIENCE_S, wait_until

MOST: Final = 3
PAGES: Final = 2
TITLE: Final = "ray::ServeReplica:lexico:Encoder"

pytestmark = pytest.mark.timeout(6 * PATIENCE_S)


@dataclass
class Load:
    """Nodes that offload new prompts until they are told to end."""

    offload: str
    reload: str
    folder: Path
    nodes: int
    pause_s: float = 0.0
    """Between two prompts of a node."""
    acknowledged: list[int] = field(default_factory=list)
    """Seeds of the prompts whose pages were all said to be stored."""
    errors: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._seeds = iter(range(1, 1 << 20))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()

    def ease(self, pause_s: float) -> None:
        """Has one node go on, with pauses; the others end."""
        self.nodes, self.pause_s = 1, pause_s

    def end(self) -> None:
        """Ends every node after its prompt."""
        self._ended.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        async with AsyncClient(
            offload=self.offload,
            reload=self.reload,
            dictionaries_dir=self.folder,
            timeouts=PATIENT,
        ) as client:
            await asyncio.gather(*(self._node(client, number) for number in range(self.nodes)))

    async def _node(self, client: AsyncClient, number: int) -> None:
        spec = spec_of("lexico")
        while number < self.nodes and not self._ended.is_set() and not self.errors:
            prompt = Cache(spec, PAGES, seed := next(self._seeds))
            try:
                report = await client.offload(spec, prompt.tokens, prompt.source)
                assert report.pages == (PageOutcome.STORED,) * PAGES
            except Exception as error:  # noqa: BLE001 - looked at by the test
                self.errors.append(error)
                return
            self.acknowledged.append(seed)
            await asyncio.sleep(self.pause_s)


def encoders(service: Service) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(service.process.pid).children(recursive=True):
        try:
            if TITLE in " ".join(process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:
            continue
    return found


BY_QUEUE: Final = "[encoder]\nongoing_per_replica = 2\n"
BY_BYTES: Final = (
    # Twelve pages want two encoders by their number, and three by their bytes.
    "[encoder]\nongoing_per_replica = 8\n[offload]\nmax_inflight_bytes = '24 MiB'\n"
)


@pytest.fixture(params=[BY_QUEUE, BY_BYTES], ids=["queue", "bytes"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    settings = tmp_path / "lexico.toml"
    settings.write_text(
        request.param.replace("[encoder]", "[encoder]\nthreads = 1\ndownscale_delay_s = 3.0")
    )
    options = ("--encoders", "1", "--max-encoders", f"{MOST}", "--encoder-cpus", "0.4")
    with Service(
        "--config", str(settings), *options, "--start-seconds", f"{PATIENCE_S}"
    ) as running:
        yield running


def test_encoders_come_under_load_and_go_after_it(service: Service, tmp_path: Path) -> None:
    assert len(encoders(service)) == 1
    load = Load(service.offload, service.reload, tmp_path, nodes=6)

    def there(count: int) -> bool:
        assert not load.errors, load.errors
        return len(encoders(service)) == count

    wait_until(lambda: there(MOST), "an encoder for each part of the load", load.acknowledged.copy)
    before = len(load.acknowledged)
    wait_until(lambda: len(load.acknowledged) > before + 6 or load.errors, "pages through them all")
    load.ease(pause_s=1.0)
    wait_until(lambda: there(1), "the encoders that nobody needs are gone")
    load.end()
    assert not load.errors, load.errors
    asyncio.run(every_page_is_right(service, load.acknowledged, tmp_path))


async def every_page_is_right(service: Service, seeds: list[int], folder: Path) -> None:
    spec = spec_of("lexico")
    async with AsyncClient(
        reload=service.reload, dictionaries_dir=folder, timeouts=PATIENT
    ) as client:
        for seed in seeds:
            prompt = Cache(spec, PAGES, seed)
            loaded = await client.load(spec, prompt.tokens, prompt.target)
            assert (loaded.pages, loaded.reason) == (PAGES, None), seed
            keys = page_keys(spec, prompt.tokens)
            for page, key in enumerate(keys):
                for group, came in enumerate(prompt.loaded[page]):
                    assert torch.equal(came, coded(spec, key, page, group, prompt)), (seed, page)


def coded(spec: CacheSpec, key: bytes, page: int, group: int, prompt: Cache) -> torch.Tensor:
    """What the codec makes of a group, here."""
    dictionary, made = builtin(), prompt.made[page][group]
    frame = encode_group(spec, key, page, group, made, dictionary)
    out = torch.empty_like(made)
    decode_group(spec, key, page, group, bytes(frame), out, dictionary)
    return out


builtin = cache(lambda: load_builtin("smollm2-135m"))
