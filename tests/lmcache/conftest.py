"""These tests run LMCache's MP server and vLLM, from an environment of their own: `make
test-lmcache`, nothing else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from transformers import AutoTokenizer

from lexico_lab.models import SMOLLM2, model_folder
from tests.support.lmcache_server import MODULE, PYTHON, LMCacheServer, lmcache_server
from tests.support.vllm_engine import BLOCK_TOKENS, ROOT, Engine, Nursery
from tests.support.vllm_service import EngineService, engine_service

collect_ignore_glob = [] if os.environ.get("LEXICO_TEST_LMCACHE") else ["test_*.py"]

TOKENS: Final = 600
LOADED: Final = 576
"""Of them, in whole chunks."""
LAYOUT: Final = {"layout": "vllm-cpu", "block_tokens": BLOCK_TOKENS}

Running = tuple[LMCacheServer, Engine]
Start = Callable[[dict[str, Any]], "contextlib.AbstractContextManager[Running]"]


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


@pytest.fixture(scope="module")
def service() -> Iterator[EngineService]:
    with engine_service() as made:
        yield made


@pytest.fixture(scope="session")
def start(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts a server with an adapter, and an engine that shares by it, for a block."""

    @contextlib.contextmanager
    def started(adapter: dict[str, Any]) -> Iterator[Running]:
        log = tmp_path_factory.mktemp("lmcache") / "lmcache.log"
        with lmcache_server(adapter, log) as server:
            # Blocks of vLLM's own cache are not free until a later step, so it has none.
            shares: dict[str, Any] = {
                "kv_transfer_config": server.connector,
                "enable_prefix_caching": False,
            }
            with nursery.engine(**shares) as engine:
                yield server, engine

    return started


def forget(server: LMCacheServer) -> None:
    """Empties its memory, once nothing in it is being stored."""
    server.settle()
    server.forget()


def plugin(service: EngineService, **settings: Any) -> dict[str, Any]:
    """Our adapter."""
    return {
        "type": "plugin",
        "module_path": MODULE,
        "class_name": "LexicoL2Adapter",
        "adapter_params": {**service.settings, **LAYOUT, **settings},
    }
