"""These tests run SGLang itself, from an environment of its own: by `make test-sglang` alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from transformers import AutoConfig

from lexico_client import fingerprint_files
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.presets import codec_named
from lexico_codec.spec import CacheSpec
from lexico_lab.models import SMOLLM2, model_folder
from lexico_proto.metrics import RECEIVED_BYTES
from tests.support.engine_prompts import Plain, Prompts, prompts_of
from tests.support.sglang_engine import PAGE_TOKENS, Engine, Engines, Nursery
from tests.support.vllm_service import EngineService, engine_service
from tests.support.waiting import PATIENCE_S, wait_until

collect_ignore_glob = [] if os.environ.get("LEXICO_TEST_SGLANG") else ["test_*.py"]

STORED: Final = 576
"""Tokens of a prompt of 600, in nine full pages."""
MANY: Final = 70
"""Tokens that each branch is answered with."""
SHORT: Final = {"match_seconds": 10.0, "idle_seconds": 10.0, "load_seconds": PATIENCE_S}
"""Deadlines of which the first two pass."""


@pytest.fixture(scope="session")
def model() -> Path:
    return Path(model_folder(SMOLLM2))


@pytest.fixture(scope="session")
def prompts(model: Path) -> Prompts:
    return prompts_of(model, apart=2, behind=150)


@pytest.fixture(scope="session")
def spec(model: Path) -> CacheSpec:
    """What pages of an engine with codec lossless belong to."""
    return CacheSpec(
        weights=fingerprint_files(model),
        geometry=geometry_of(AutoConfig.from_pretrained(model), "float32"),
        codec=codec_named("lossless"),
        page_tokens=PAGE_TOKENS,
    )


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("sglang") / "sglang.log", model)
    yield made
    made.close()


@pytest.fixture(scope="session")
def engines(nursery: Nursery) -> Iterator[Engines]:
    made = Engines(nursery)
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
def plain(engines: Engines, prompts: Prompts) -> Plain:
    engine = engines.like()
    return Plain(
        engine.generate(*prompts.apart).tokens,
        engine.generate(*prompts.spare).tokens,
        engine.generate(*prompts.branches, max_tokens=MANY).tokens,
        engine.generate(prompts.long).tokens[0],
    )


@pytest.fixture(scope="session")
def stored(engines: Engines, service: EngineService, prompts: Prompts, plain: Plain) -> None:
    """A process computed and stored every prompt of `apart`, in float32 without loss."""
    engine = engines.like({**service.settings, "codec": "lossless"})
    for ids, tokens in zip(prompts.apart, plain.apart, strict=True):
        found = engine.generate(ids)
        assert (found.tokens[0], found.cached) == (tokens, [0])
    engine.flush()  # SGLang backs everything up again once it is computed again
    whole = len(prompts.apart) * STORED // PAGE_TOKENS
    assert len(service.store._pages) == whole
    before = service.counts(RECEIVED_BYTES)
    found = engine.generate(prompts.apart[0])
    assert (found.tokens[0], found.loaded[0]) == (plain.apart[0], STORED)
    engine.flush()
    assert service.counts(RECEIVED_BYTES) == before
    assert engine.shown()["lexico_engine_pages_total sent"] == whole


@pytest.fixture
def engine(engines: Engines, service: EngineService, stored: None) -> Iterator[Engine]:
    """Another process, which computed nothing, or has forgotten what it computed."""
    made = engines.like({**service.settings, "codec": "lossless", **SHORT})
    made.flush()
    yield made
    service.reload.delay_s = service.offload.delay_s = 0.0


def hits_again(engine: Engine, ids: list[int]) -> None:
    """Waits until the prompt, or what there was of it, is in the store and the service is known to
    be back."""

    def hit() -> bool:
        engine.flush()
        return engine.generate(ids, max_tokens=1).loaded[0] == STORED

    wait_until(hit, "a hit")
