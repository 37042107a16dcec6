"""Facts hidden in a context, asked for on its reloaded cache.

After SCBench's modes (arXiv 2412.10319) with tasks that a small model can do. One context is stored
once. It holds sentences `The secret word of NAME is WORD.`, spread evenly (key-value), and one of
another kind at a depth of its own (needle). In mode `requests` every question is asked of the
reloaded context alone; in mode `turns` they are asked one after another in a conversation that is
stored and reloaded between them, with the right answers in it.

The answer is the most probable of the candidates by their first token that differs: for a key-value
question the words of all facts, for the needle words of which the context has no other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict

import torch
from torch import Tensor

from lexico_lab.caches import cache_of, divergence, forward, states_of
from lexico_lab.evaluation.prefixes import tokenize
from lexico_lab.evaluation.settings import EvalSettings
from lexico_lab.evaluation.shelf import OpenShelf
from lexico_lab.evaluation.turns import resume
from lexico_proto.errors import InvalidInput

Mode = Literal["requests", "turns"]
MODES: Final[tuple[Mode, ...]] = ("requests", "turns")

NAMES: Final[tuple[str, ...]] = (
    *("Alice", "Bruno", "Clara", "David", "Elena", "Frank", "Grace", "Henry"),
    *("Irene", "Jacob", "Karen", "Louis", "Maria", "Nolan", "Olive", "Peter"),
)
WORDS: Final[tuple[str, ...]] = (
    *("apple", "bridge", "candle", "dragon", "engine", "forest", "guitar", "hammer", "island"),
    *("jacket", "kitchen", "lemon", "mirror", "needle", "orange", "pencil", "queen", "rocket"),
    *("silver", "tiger", "umbrella", "violin", "window", "yellow", "zebra"),
)


@dataclass(frozen=True)
class Question:
    """What is asked."""

    kind: Literal["key-value", "needle"]
    depth: float
    """Where in the context the fact stands, from 0 to 1."""
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    candidates: tuple[int, ...]
    """A token each."""
    right: int
    """Index in `candidates`."""


@dataclass(frozen=True)
class Task:
    """A context and what is asked of it."""

    context: tuple[int, ...]
    questions: tuple[Question, ...]


class Answer(TypedDict):
    """One question."""

    kind: str
    depth: float
    right: bool
    """Whether the right candidate is the most probable."""
    score: float
    """Log-probability of the right one among the candidates, nats."""
    kl: float
    """Of the next token, over the whole vocabulary, against the exact cache."""


@dataclass(frozen=True, eq=False)
class ExactTask:
    """A task as a node without compression does it."""

    task: Task
    states: Tensor
    """Of the context."""
    predictions: dict[Mode, list[Tensor]]
    """`[vocabulary]` log-probabilities a question."""

    def answers(self) -> dict[Mode, list[Answer]]:
        """Those of the exact cache."""
        return _judged(self.task, self.predictions, self.predictions)


def make_task(tokenizer: Any, text: Sequence[int], settings: EvalSettings, number: int) -> Task:
    """Hides facts in the leading tokens of a text.

    Args:
        tokenizer: the model's.
        text: what they are hidden in.
        settings: `prefix`, tokens of the context; `pairs`; `seed`.
        number: of the text: facts differ from text to text.

    Raises:
        InvalidInput: the context is too short for the facts, or too few words begin differently in
            this tokenizer.
    """
    draw = random.Random(f"{settings.seed} {number}")
    names, words = draw.sample(NAMES, settings.pairs), _different(tokenizer, draw)
    if len(words) < settings.pairs + 2:
        raise InvalidInput(
            f"retrieval: {len(words)} of our words begin differently in this tokenizer, "
            f"{settings.pairs + 2} are needed: ask for fewer --pairs"
        )
    spots = [f"The secret word of {name} is" for name in names]
    spots.insert(number % (settings.pairs + 1), "The name of the ship is")
    needle = number % (settings.pairs + 1)
    told = words[: len(spots)]
    facts = [
        tokenize(tokenizer, f"\n{spot} {word}.\n") for spot, word in zip(spots, told, strict=True)
    ]
    room = settings.prefix - sum(map(len, facts))
    if room < len(facts):
        raise InvalidInput(
            f"retrieval: a context of {settings.prefix} tokens has no room for {len(facts)} facts: "
            "ask for fewer --pairs, or none"
        )
    context: list[int] = []
    cuts = [round(room * i / (len(facts) + 1)) for i in range(len(facts) + 2)]
    depths = []
    for index, fact in enumerate(facts):
        context += text[cuts[index] : cuts[index + 1]]
        depths.append(len(context) / settings.prefix)
        context += fact
    context += text[cuts[-2] : cuts[-1]]
    questions = []
    others = [word for index, word in enumerate(told) if index != needle]
    for index, spot in enumerate(spots):
        is_needle = index == needle
        pool = [told[needle], *words[len(spots) :]] if is_needle else others
        pool = sorted(pool[: settings.pairs + 1])
        questions.append(_question(tokenizer, spot, told[index], pool, depths[index], is_needle))
    draw.shuffle(questions)
    return Task(tuple(context), tuple(questions))


@torch.inference_mode()
def exact_task(model: Any, task: Task) -> ExactTask:
    """Does a task without compression."""
    cache = cache_of()
    forward(model, task.context, cache, 1)
    states, requests, turns = states_of(cache), [], []
    for question in task.questions:
        requests.append(forward(model, question.prompt, cache, 1)[0])
        cache.crop(-len(question.prompt))
    for question in task.questions:
        turns.append(forward(model, question.prompt, cache, 1)[0])
        forward(model, question.answer, cache, 1)
    return ExactTask(task, states, {"requests": requests, "turns": turns})


@torch.inference_mode()
def ask(
    model: Any, exact: ExactTask, open_shelf: OpenShelf, settings: EvalSettings
) -> dict[Mode, list[Answer]]:
    """Asks all questions in both modes of a context that was stored and reloaded."""
    shelf, context = open_shelf(), list(exact.task.context)
    shelf.store(context, exact.states)
    made: dict[Mode, list[Tensor]] = {"requests": [], "turns": []}
    for question in exact.task.questions:
        _, answer, _ = resume(model, shelf, [*context, *question.prompt], settings)
        made["requests"].append(answer[0])
    ids = context
    for question in exact.task.questions:
        ids = [*ids, *question.prompt]
        cache, answer, _ = resume(model, shelf, ids, settings)
        made["turns"].append(answer[0])
        forward(model, question.answer, cache, 1)
        ids = [*ids, *question.answer]
        shelf.store(ids, states_of(cache))
    return _judged(exact.task, exact.predictions, made)


def _judged(
    task: Task, exact: dict[Mode, list[Tensor]], made: dict[Mode, list[Tensor]]
) -> dict[Mode, list[Answer]]:
    found: dict[Mode, list[Answer]] = {}
    for mode in MODES:
        found[mode] = []
        for question, ours, other in zip(task.questions, exact[mode], made[mode], strict=True):
            scores = other[list(question.candidates)].log_softmax(0)
            found[mode].append(
                {
                    "kind": question.kind,
                    "depth": question.depth,
                    "right": int(scores.argmax()) == question.right,
                    "score": float(scores[question.right]),
                    "kl": divergence(ours[None], other[None]),
                }
            )
    return found


def _question(
    tokenizer: Any, spot: str, word: str, pool: Sequence[str], depth: float, needle: bool
) -> Question:
    """What the candidates' tokens have in common goes to the prompt."""
    sequences = [tokenize(tokenizer, f" {candidate}") for candidate in pool]
    common = _common(sequences)
    right = pool.index(word)
    return Question(
        kind="needle" if needle else "key-value",
        depth=depth,
        prompt=(*tokenize(tokenizer, f"\n{spot}"), *sequences[right][:common]),
        answer=(*sequences[right][common:], *tokenize(tokenizer, ".\n")),
        candidates=tuple(sequence[common] for sequence in sequences),
        right=right,
    )


def _different(tokenizer: Any, draw: random.Random) -> list[str]:
    """Our words in a random order, without those that begin with another one's first token."""
    words = draw.sample(WORDS, len(WORDS))
    sequences = [tokenize(tokenizer, f" {word}") for word in words]
    common = _common(sequences)
    found: dict[int, str] = {}
    for word, sequence in zip(words, sequences, strict=True):
        if len(sequence) > common:
            found.setdefault(sequence[common], word)
    return list(found.values())


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """Leading tokens that all have in common, but not the last of any."""
    shortest = min(map(len, sequences)) - 1
    at = 0
    while at < shortest and len({sequence[at] for sequence in sequences}) == 1:
        at += 1
    return at
