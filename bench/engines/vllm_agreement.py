"""How far answers of vLLM agree after a reload of a lossy codec, and with those of its own cache.

Greedy answers of an engine without us are what others are compared with. `free` counts the equal
tokens of answers that go on from what they said themselves: one that departs once counts as other
from there on. `forced` counts the equal next tokens where each is predicted from the expected
answer before it. `own` is the engine without us a second time, with its own prefix cache:
what it differs from itself by.
"""

from __future__ import annotations

from typing import Any

from bench.engines.parts import Answer, agreement
from tests.support.vllm_engine import Engine, Nursery


def measure(
    nursery: Nursery,
    settings: dict[str, Any],
    codecs: list[str],
    prompts: list[list[int]],
    answer: int,
) -> list[dict[str, Any]]:
    """A row for the engine's own cache, and one for each codec.

    Args:
        nursery: of the engines, which run one after another.
        settings: of the connector.
        codecs: presets.
        prompts: token ids.
        answer: tokens of an answer.

    Raises:
        SystemExit: a prompt was not reloaded.
    """
    with nursery.engine() as plain:
        expected = [_answer(plain, ids, answer)[0] for ids in prompts]
        rows = [_row("own", plain, prompts, expected)]
    for codec in codecs:
        with nursery.engine({**settings, "codec": codec}) as engine:
            for ids in prompts:
                _answer(engine, ids, 1)
            engine.settle()
            engine.reset()
            rows.append(_row(codec, engine, prompts, expected))
    return rows


def _row(
    name: str, engine: Engine, prompts: list[list[int]], expected: list[list[int]]
) -> dict[str, Any]:
    free, forced, loaded = list[Answer](), list[Answer](), 0
    for ids, theirs in zip(prompts, expected, strict=True):
        said, cached = _answer(engine, ids, len(theirs))
        if not cached:
            raise SystemExit(f"{name}: a prompt was not reloaded")
        loaded += cached
        nexts = [_answer(engine, ids + theirs[:place], 1)[0][0] for place in range(1, len(theirs))]
        free.append(said)
        forced.append([said[0], *nexts])
    return agreement(name, prompts, loaded, expected, free, forced)


def _answer(engine: Engine, ids: list[int], tokens: int) -> tuple[list[int], int]:
    found = engine.generate(ids, max_tokens=tokens, params={"ignore_eos": True})
    return found.tokens[0], found.cached[0]
