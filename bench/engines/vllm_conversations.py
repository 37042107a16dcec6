"""Conversations over two vLLM engines that take turns, lossless, against one engine without us.

Every turn of a conversation is answered by the other engine: it has the turns before it from the
service alone. The measure is how many tokens of the answers are the same.
"""

from __future__ import annotations

from typing import Any, Final

from tests.support.vllm_engine import Engine, Nursery

QUESTIONS: Final = (130, 41, 53, 38)
"""Tokens that each turn adds."""
AT_ONCE: Final = 10
"""Conversations that an engine answers at the same time."""
COUNTS: Final = ("conversations", "answer tokens", "equal", "whole conversations", "cached tokens")
"""Of a row, what pieces of a run add up to."""
OPTIONS: Final[dict[str, Any]] = {"max_num_seqs": AT_ONCE, "max_model_len": 768}


def texts_needed(conversations: int) -> tuple[int, int]:
    """How many texts of how many tokens."""
    return conversations, sum(QUESTIONS)


def measure(
    nurseries: list[Nursery],
    settings: dict[str, Any],
    texts: list[list[int]],
    answer: int,
) -> dict[str, Any]:
    """A row.

    Args:
        nurseries: of the two engines.
        settings: of the connector.
        texts: what is asked in each conversation, turn after turn.
        answer: tokens of an answer.
    """
    with nurseries[0].engine(**OPTIONS) as plain:
        expected, _ = _held([plain, plain], texts, answer)
    ours = {**settings, "codec": "lossless"}
    with nurseries[0].engine(ours, **OPTIONS) as one, nurseries[1].engine(ours, **OPTIONS) as two:
        found, cached = _held([one, two], texts, answer)
    pairs = [pair for a, b in zip(expected, found, strict=True) for pair in zip(a, b, strict=True)]
    return {
        "conversations": len(texts),
        "turns": len(QUESTIONS),
        "answer tokens": len(pairs),
        "equal": sum(a == b for a, b in pairs),
        "whole conversations": sum(a == b for a, b in zip(expected, found, strict=True)),
        "cached tokens": cached,
    }


def _held(
    engines: list[Engine], texts: list[list[int]], answer: int
) -> tuple[list[list[int]], int]:
    """The answers of each conversation, one after another; and tokens of prompts that were found
    in a cache, vLLM's own or ours."""
    answers: list[list[int]] = [[] for _ in texts]
    cached = 0
    for first in range(0, len(texts), AT_ONCE):
        prompts: list[list[int]] = [[] for _ in texts[first : first + AT_ONCE]]
        start = 0
        for turn, tokens in enumerate(QUESTIONS):
            for place, prompt in enumerate(prompts):
                prompt += texts[first + place][start : start + tokens]
            start += tokens
            engine = engines[turn % 2]
            params = {"ignore_eos": True}
            came = engine.generate(*prompts, max_tokens=answer, params=params)
            engine.settle()
            cached += sum(came.cached)
            for place, (prompt, said) in enumerate(zip(prompts, came.tokens, strict=True)):
                prompt += said
                answers[first + place] += said
    return answers, cached
