"""These tests run SGLang itself, from an environment of its own: by `make test-sglang` alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from transformers import AutoTokenizer

from lexico_lab.models import SMOLLM2, model_folder
from lexico_proto.metrics import RECEIVED_BYTES
from tests.support.sglang_engine import PAGE_TOKENS, ROOT, Nursery
from tests.support.vllm_service import EngineService, engine_service
from tests.support.waiting import wait_until

collect_ignore_glob = [] if os.environ.get("LEXICO_TEST_SGLANG") else ["test_*.py"]

TOKENS: Final = 600
STORED: Final = 576
"""Of them, in nine full pages."""


@dataclass(frozen=True)
class Prompts:
    """Token ids of a document."""

    apart: list[list[int]]
    """Of 600 tokens each, without a common beginning."""
    spare: list[list[int]]
    """Others that no test stores before it needs them."""

    def branch(self, tokens: int, other: int) -> list[int]:
        """The beginning of the first prompt, and then another text."""
        return self.apart[0][:tokens] + self.spare[other][: TOKENS - tokens]


@pytest.fixture(scope="session")
def model() -> Path:
    return Path(model_folder(SMOLLM2))


@pytest.fixture(scope="session")
def prompts(model: Path) -> Prompts:
    text = (ROOT / "docs" / "training.md").read_text() + (ROOT / "docs" / "stores.md").read_text()
    ids = AutoTokenizer.from_pretrained(model)(text).input_ids
    cut = [ids[i * TOKENS : (i + 1) * TOKENS] for i in range(6)]
    assert all(len(each) == TOKENS for each in cut)
    return Prompts(cut[:2], cut[2:])


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("sglang") / "sglang.log", model)
    yield made
    made.close()


@pytest.fixture(scope="session")
def service() -> Iterator[EngineService]:
    with engine_service() as made:
        yield made


@pytest.fixture(scope="session")
def plain(nursery: Nursery, prompts: Prompts) -> list[list[int]]:
    """The tokens of an engine without us, of every prompt of `apart` and the first of `spare`."""
    with nursery.engine() as engine:
        return [engine.generate(ids).tokens[0] for ids in (*prompts.apart, prompts.spare[0])]


@pytest.fixture(scope="session")
def stored(
    nursery: Nursery, service: EngineService, prompts: Prompts, plain: list[list[int]]
) -> None:
    """A process computed and stored every prompt of `apart`, in float32 without loss."""
    with nursery.engine({**service.settings, "codec": "lossless"}) as engine:
        for ids, tokens in zip(prompts.apart, plain, strict=False):
            found = engine.generate(ids)
            assert (found.tokens[0], found.cached) == (tokens, [0])
        whole = len(prompts.apart) * STORED // PAGE_TOKENS
        wait_until(lambda: len(service.store._pages) == whole, "every page to be stored")
        engine.flush()  # SGLang backs everything up again once it is computed again
        before = service.counts(RECEIVED_BYTES)
        found = engine.generate(prompts.apart[0])
        assert (found.tokens[0], found.details[0]["storage"]) == (plain[0], STORED)
        assert service.counts(RECEIVED_BYTES) == before
        assert engine.shown()["lexico_engine_pages_total sent"] == whole
