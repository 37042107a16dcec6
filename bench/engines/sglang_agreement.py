"""How far answers of SGLang agree after a reload of a lossy codec, and with those of its own cache.

Greedy answers of an engine without us are what others are compared with. `free` counts the
equal tokens of answers that go on from what they said themselves: one that departs once counts as
other from there on. `forced` counts the equal next tokens where each is predicted from the expected
answer before it. `own` is the engine without us a second time, with its own prefix cache:
what it differs from itself by.

SGLang does not say where a prompt ends: of a prompt's full pages all come from codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from bench.engines.parts import Answer, agreement
from tests.support.sglang_engine import PAGE_TOKENS, Engine, Generated, Nursery

OWN: Final = "own"


def measure(
    nursery: Nursery,
    settings: dict[str, Any],
    codecs: Sequence[str],
    prompts: list[list[int]],
    answer: int,
) -> list[dict[str, Any]]:
    """A row for the engine's own cache, and one for each codec.

    Args:
        nursery: of the engines, which run one after another.
        settings: of the backend.
        codecs: presets.
        prompts: token ids.
        answer: tokens of an answer.

    Raises:
        SystemExit: a prompt was not reloaded.
    """
    pages = len(prompts) * -(-(len(prompts[0]) + answer) // PAGE_TOKENS)
    with nursery.engine(max_total_tokens=(pages + 8) * PAGE_TOKENS) as plain:
        expected = [_answer(plain, ids, answer).tokens[0] for ids in prompts]
        rows = [_row(OWN, plain, prompts, expected)]
    for codec in codecs:
        with nursery.engine({**settings, "codec": codec}) as engine:
            for ids in prompts:
                _answer(engine, ids, 1)
                engine.flush()
            rows.append(_row(codec, engine, prompts, expected))
    return rows


def _row(
    name: str, engine: Engine, prompts: list[list[int]], expected: list[list[int]]
) -> dict[str, Any]:
    free, forced, loaded = list[Answer](), list[Answer](), 0
    for ids, theirs in zip(prompts, expected, strict=True):
        found = _answer(engine, ids, len(theirs))
        said, cached = found.tokens[0], (found.cached if name == OWN else found.loaded)[0]
        if not cached:
            raise SystemExit(f"{name}: a prompt was not reloaded")
        loaded += cached
        places = range(1, len(theirs))
        nexts = [_answer(engine, ids + theirs[:place], 1).tokens[0][0] for place in places]
        free.append(said)
        forced.append([said[0], *nexts])
    return agreement(name, prompts, loaded, expected, free, forced)


def _answer(engine: Engine, ids: list[int], tokens: int) -> Generated:
    return engine.generate(ids, max_tokens=tokens, ignore_eos=True)
