"""These tests run LMCache's MP server and vLLM, from an environment of their own: `make
test-lmcache`, nothing else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from transformers import AutoTokenizer

from lexico_lab.models import SMOLLM2, model_folder
from lexico_proto.metrics import ENGINE_TOKENS, OF_ENGINES, Family
from tests.support.lmcache_server import (
    CHUNK_TOKENS,
    MODULE,
    PYTHON,
    LMCacheServer,
    lmcache_server,
)
from tests.support.vllm_engine import BLOCK_TOKENS, ROOT, Engine, Nursery
from tests.support.vllm_service import EngineService, engine_service
from tests.support.waiting import PATIENCE_S, wait_until

collect_ignore_glob = [] if os.environ.get("LEXICO_TEST_LMCACHE") else ["test_*.py"]

TOKENS: Final = 600
LOADED: Final = 576
"""Of them, in whole chunks."""
CHUNKS: Final = LOADED // CHUNK_TOKENS
SHARED: Final = 320
"""Tokens, five chunks, that some prompts have in common."""
MANY: Final = 100
"""Tokens that each of those is answered with: more than the engine has blocks for."""
SMALL: Final[dict[str, Any]] = {
    "max_num_batched_tokens": 128,
    "num_gpu_blocks_override": 34,
    "max_model_len": 768,
}
"""Steps of 128 tokens, and blocks for 1,088."""
DEADLINES: Final = {
    "match_seconds": 20.0,
    "load_seconds": 60.0,
    "idle_seconds": 10.0,
    "offload_seconds": PATIENCE_S,
}
"""Of calls that end, in some tests, because nobody answers."""
LAYOUT: Final = {"layout": "vllm-cpu", "block_tokens": BLOCK_TOKENS}

Running = tuple[LMCacheServer, Engine]
Start = Callable[..., "contextlib.AbstractContextManager[Running]"]


@pytest.fixture(scope="session")
def model() -> Path:
    return Path(model_folder(SMOLLM2))


@pytest.fixture(scope="session")
def prompts(model: Path) -> list[list[int]]:
    """Token ids of 600 tokens each; the last one begins as the first."""
    text = (ROOT / "docs" / "training.md").read_text()
    ids = AutoTokenizer.from_pretrained(model)(text).input_ids
    cut = [ids[i * TOKENS : (i + 1) * TOKENS] for i in range(4)]
    assert all(len(each) == TOKENS for each in cut)
    return [*cut[:3], cut[0][:300] + cut[3][: TOKENS - 300]]


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("vllm") / "vllm.log", model, PYTHON)
    yield made
    made.close()


@pytest.fixture(scope="session")
def service() -> Iterator[EngineService]:
    with engine_service() as made:
        yield made


@pytest.fixture(scope="session")
def start(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts a server with an adapter, and an engine that shares by it, for a block. Options are
    the engine's."""

    @contextlib.contextmanager
    def started(adapter: dict[str, Any], **options: Any) -> Iterator[Running]:
        log = tmp_path_factory.mktemp("lmcache") / "lmcache.log"
        with lmcache_server(adapter, log) as server:
            # Blocks of vLLM's own cache are not free until a later step, so it has none.
            shares: dict[str, Any] = {
                "kv_transfer_config": server.connector,
                "enable_prefix_caching": False,
            }
            with nursery.engine(**shares, **options) as engine:
                yield server, engine

    return started


@dataclass(frozen=True)
class Plain:
    """What an engine says that nobody shares with."""

    prompts: list[list[int]]
    """Answers of 16 tokens."""
    branches: list[list[int]]
    """Of `MANY`."""


@pytest.fixture(scope="session")
def branches(prompts: list[list[int]]) -> list[list[int]]:
    """Token ids of four prompts with a common beginning, which is the first prompt's too."""
    rest = prompts[3][300:]
    return [prompts[0][:SHARED] + rest[other * 20 :][: 80 + 40 * other] for other in range(4)]


@pytest.fixture(scope="session")
def plain(
    start: Start, service: EngineService, prompts: list[list[int]], branches: list[list[int]]
) -> Plain:
    """Of an engine that computed all of them; its server stored all but the last of the prompts."""
    with start(plugin(service)) as (server, engine):
        found = [engine.generate(ids) for ids in prompts[:3]]
        server.stored(sent=3 * CHUNKS)
        service.offload.refuse()
        service.reload.refuse()
        for ids in (prompts[3], *branches):
            forget(server)
            many = 16 if ids is prompts[3] else MANY
            found.append(engine.generate(ids, max_tokens=many))
        server.settle()
        service.reload.accept()
        service.offload.accept()
        assert [each.cached for each in found] == [[0]] * 8
        tokens = [each.tokens[0] for each in found]
        return Plain(tokens[:4], tokens[4:])


@pytest.fixture(scope="session")
def running(start: Start, service: EngineService, model: Path, plain: Plain) -> Iterator[Running]:
    """Another server, which has nothing in its memory, and an engine with small steps and few
    blocks. The server knows the model when it starts: no look-up waits for its files."""
    with start(plugin(service, **DEADLINES, model=str(model)), **SMALL) as made:
        yield made


@pytest.fixture
def fresh(running: Running) -> Running:
    """With nothing in the memory of the server."""
    forget(running[0])
    return running


def forget(server: LMCacheServer) -> None:
    """Empties its memory, once nothing in it is being stored."""
    server.settle()
    server.forget()


def hits_again(running: Running, ids: list[int]) -> None:
    """Waits until a prompt is loaded from the service: it is back, and known to be."""
    server, engine = running

    def hit() -> bool:
        before = server.counted(ENGINE_TOKENS.name).get("loaded", 0)
        forget(server)
        engine.generate(ids, max_tokens=1)
        return server.counted(ENGINE_TOKENS.name).get("loaded", 0) == before + LOADED

    wait_until(hit, "a hit", every_s=0.5)
    server.settle()


class Watched:
    """What a server has counted since, and the warnings that it gave of us."""

    def __init__(self, server: LMCacheServer) -> None:
        self._server = server
        self._counted = {family.name: server.counted(family.name) for family in OF_ENGINES}
        self._said = len(server.said())

    def grew(self, family: Family, value: str) -> int:
        """By how much a counter rose."""
        before = self._counted[family.name].get(value, 0)
        return self._server.counted(family.name).get(value, 0) - before

    def warnings(self, what: str) -> int:
        """How often it was said that look-ups, loads or stores failed."""
        return self._server.said()[self._said :].count(f"{what} failed, the engine computes")


def plugin(service: EngineService, **settings: Any) -> dict[str, Any]:
    """Our adapter."""
    return {
        "type": "plugin",
        "module_path": MODULE,
        "class_name": "LexicoL2Adapter",
        "adapter_params": {**service.settings, **LAYOUT, **settings},
    }
