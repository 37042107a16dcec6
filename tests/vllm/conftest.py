"""These tests run vLLM itself, from an environment of its own: `make test-vllm`, nothing else."""

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
from tests.support.engine_prompts import Prompts, prompts_of
from tests.support.vllm_engine import Nursery
from tests.support.vllm_service import EngineService, engine_service

collect_ignore_glob = [] if os.environ.get("LEXICO_TEST_VLLM") else ["test_*.py"]
collect_ignore = [] if os.environ.get("LEXICO_TEST_VLLM_SOURCE") else ["test_own.py"]

LOADED: Final = 576
"""Tokens of a prompt in full pages."""


@pytest.fixture(scope="session")
def model() -> Path:
    return Path(model_folder(SMOLLM2))


@pytest.fixture(scope="session")
def prompts(model: Path) -> Prompts:
    return prompts_of(model, apart=4)


@pytest.fixture(scope="session")
def spec(model: Path) -> CacheSpec:
    """What pages of an engine with codec lossless belong to."""
    return CacheSpec(
        weights=fingerprint_files(model),
        geometry=geometry_of(AutoConfig.from_pretrained(model), "float32"),
        codec=codec_named("lossless"),
    )


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("vllm") / "vllm.log", model)
    yield made
    made.close()


@pytest.fixture(scope="session")
def plain(nursery: Nursery, prompts: Prompts) -> list[list[int]]:
    """The tokens of an engine without us, of every prompt of `apart`."""
    with nursery.engine() as engine:
        return [engine.generate(ids).tokens[0] for ids in prompts.apart]


@pytest.fixture(scope="module")
def service() -> Iterator[EngineService]:
    with engine_service() as made:
        yield made


@pytest.fixture
def fresh() -> Iterator[EngineService]:
    """A service that nobody has stored anything in."""
    with engine_service() as made:
        yield made
