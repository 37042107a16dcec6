"""Conversations: each turn's prompt is the last one, its answer, and something new."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from lexico_proto.metrics import ENGINE_PAGES, ENGINE_TOKENS
from tests.support.engine_prompts import Prompts
from tests.support.vllm_engine import Engine, Nursery
from tests.support.vllm_service import EngineService

ANSWER: Final = 45
"""Tokens: no page and no block ends with any turn."""
QUESTIONS: Final = (150, 37, 61, 29)
"""Tokens that each turn adds."""
STORED: Final = [0, 128, 192, 320]
"""Tokens of full pages that the turns before each have stored: 150, 232 and 338 tokens long."""


def conversation(engine: Engine, text: list[int], forget: bool) -> tuple[list[Any], list[int]]:
    """The answers, and the tokens of each prompt that were in a cache."""
    ids, answers, cached = list[int](), [], []
    for tokens in QUESTIONS:
        ids = ids + text[:tokens]
        text = text[tokens:]
        found = engine.generate(ids, max_tokens=ANSWER, params={"ignore_eos": True})
        engine.settle()
        if forget:
            engine.reset()
        answers.append(found.tokens[0])
        cached += found.cached
        ids = ids + found.tokens[0]
    return answers, cached


@pytest.fixture(scope="module")
def expected(nursery: Nursery, prompts: Prompts) -> list[list[Any]]:
    """Of an engine without us."""
    with nursery.engine() as engine:
        return [conversation(engine, text, forget=True)[0] for text in prompts.apart[:2]]


@pytest.fixture(scope="module")
def engine(nursery: Nursery, service: EngineService, expected: list[list[Any]]) -> Iterator[Engine]:
    with nursery.engine({**service.settings, "codec": "lossless"}) as made:
        yield made


def test_turns_load_what_the_turns_before_stored(
    engine: Engine, prompts: Prompts, expected: list[list[Any]]
) -> None:
    """The turns before are in the service alone, as where another engine answered them."""
    answers, cached = conversation(engine, prompts.apart[0], forget=True)
    assert (answers, cached) == (expected[0], STORED)
    assert engine.counted(ENGINE_PAGES.name)["sent"] == 6  # of 412 tokens, each page once
    assert engine.counted(ENGINE_TOKENS.name)["loaded"] == sum(STORED)


def test_an_engine_that_has_the_turns_before_itself_stores_what_is_new(
    engine: Engine, prompts: Prompts, expected: list[list[Any]]
) -> None:
    """Its own cache has the answers too: it loads nothing, and others can go on from there."""
    pages, tokens = (engine.counted(f.name) for f in (ENGINE_PAGES, ENGINE_TOKENS))
    answers, cached = conversation(engine, prompts.apart[1], forget=False)
    assert answers == expected[1]
    assert all(own > stored for own, stored in zip(cached[1:], STORED[1:], strict=True))
    assert engine.counted(ENGINE_PAGES.name)["sent"] == pages.get("sent", 0) + 6
    assert engine.counted(ENGINE_TOKENS.name)["loaded"] == tokens["loaded"]
    engine.reset()
    ids, text = list[int](), prompts.apart[1]
    for asked, answer in zip(QUESTIONS, expected[1], strict=True):
        ids, text = ids + text[:asked] + answer, text[asked:]
    assert engine.generate(ids, max_tokens=1).cached == [384]
