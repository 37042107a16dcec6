"""These tests run LMCache's MP server and vLLM, from an environment of their own: `make
test-lmcache`, nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from lexico_lab.models import SMOLLM2, model_folder
from tests.support.engine_prompts import Plain, Prompts, prompts_of
from tests.support.lmcache_fakes import LOCKS
from tests.support.lmcache_pairs import Pair, Pairs
from tests.support.lmcache_server import CHUNK_TOKENS, MODULE, PYTHON
from tests.support.vllm_engine import BLOCK_TOKENS, Nursery
from tests.support.vllm_service import EngineService, engine_service
from tests.support.waiting import PATIENCE_S

collect_ignore_glob = [] if os.environ.get("LEXICO_TEST_LMCACHE") else ["test_*.py"]
collect_ignore = [] if os.environ.get("LEXICO_TEST_LMCACHE_SOURCE") else ["test_own.py"]

LOADED: Final = 576
"""Tokens of a prompt of 600, in nine whole chunks."""
CHUNKS: Final = LOADED // CHUNK_TOKENS
MANY: Final = 100
"""Tokens that each branch is answered with."""
LAYOUT: Final = {"layout": "vllm-cpu", "block_tokens": BLOCK_TOKENS}
SHORT: Final = {"match_seconds": 10.0, "idle_seconds": 10.0, "drain_seconds": PATIENCE_S}
"""Deadlines of which the first two pass."""


@pytest.fixture(scope="session")
def model() -> Path:
    return Path(model_folder(SMOLLM2))


@pytest.fixture(scope="session")
def prompts(model: Path) -> Prompts:
    return prompts_of(model, apart=3)


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("vllm") / "vllm.log", model, PYTHON)
    yield made
    made.close()


@pytest.fixture(scope="session")
def pairs(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pairs]:
    made = Pairs(nursery, tmp_path_factory.mktemp)
    yield made
    made.close()


@pytest.fixture(scope="session")
def policy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the service; it may change."""
    file = tmp_path_factory.mktemp("policies") / "policies.toml"
    file.write_text("[default]\n")
    return file


@pytest.fixture(scope="session")
def service(policy_file: Path) -> Iterator[EngineService]:
    with engine_service(policy_file=policy_file) as made:
        yield made


@pytest.fixture(scope="session")
def plain(pairs: Pairs, prompts: Prompts) -> Plain:
    engine = pairs.alone()

    def tokens(*token_ids: list[int], max_tokens: int = 16) -> list[list[int]]:
        return [engine.generate(ids, max_tokens=max_tokens).tokens[0] for ids in token_ids]

    return Plain(
        tokens(*prompts.apart),
        tokens(*prompts.spare),
        tokens(*prompts.branches, max_tokens=MANY),
        *tokens(prompts.long),
    )


@pytest.fixture(scope="session")
def stored(
    pairs: Pairs, service: EngineService, model: Path, prompts: Prompts, plain: Plain
) -> set[str]:
    """A server stored every prompt of `apart`, which its engine computed; the pages' names."""
    pair, before = pairs.like(plugin(service, model)), set(service.store._pages)
    found = pair.engine.generate(*prompts.apart)
    assert (found.tokens, found.cached) == (plain.apart, [0] * len(plain.apart))
    pair.server.stored(sent=len(plain.apart) * CHUNKS)
    return set(service.store._pages) - before


@pytest.fixture
def pair(pairs: Pairs, service: EngineService, model: Path, stored: set[str]) -> Iterator[Pair]:
    """Another server and another engine, which computed nothing or have forgotten it."""
    made = pairs.like(plugin(service, model, **SHORT))
    made.forget()
    yield made
    for proxy in (service.reload, service.offload):
        proxy.delay_s = proxy.upload_delay_s = 0.0


def plugin(service: EngineService, model: Path, **settings: Any) -> dict[str, Any]:
    """Our adapter. It is told the model: else it hashes its files in the first look-up's time."""
    return {
        "type": "plugin",
        "module_path": MODULE,
        "class_name": "LexicoL2Adapter",
        "adapter_params": {**service.settings, **LOCKS, **LAYOUT, "model": str(model), **settings},
    }
