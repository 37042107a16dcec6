"""What the nodes are asked: questions on a context that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

CONTEXT_TOKENS: Final = 1600
QUESTION_A: Final = "In one sentence: what does this service share between inference nodes?"
# As long as people's are. Behind a shorter one, what a lossy codec leaves to the model begins in
# the shared context (ADR 0031): then lossless is the faster one where bytes cost nothing.
QUESTIONS_B: Final = (
    "We run twelve inference nodes on three machines, all with the same model, and most of our "
    "prompts begin with the same manual. Before I order more memory I would like to know one "
    "thing. Which store holds the compressed pages?",
    "I am worried about a bad day. Suppose that a disk breaks, or that somebody writes into the "
    "store by mistake, and a page of a prompt that we have stored is damaged from then on. "
    "What does a node do when a stored page is damaged?",
)
FOLLOW_UP: Final = (
    "Thank you. Our nodes stand in two buildings, and people complain that they wait long for the "
    "first word of an answer when a conversation has become long. Would this help them? "
    "And why is that useful?"
)


def shared_context() -> str:
    """Text of our own: the project's documentation."""
    root = Path(__file__).parent.parent.parent
    return "\n\n".join((root / name).read_text() for name in ("README.md", "docs/glossary.md"))


def prompt_of(tokenizer: Any, question: str) -> list[int]:
    """Token ids of a chat: the context as system message, then the question."""
    ids = tokenizer(shared_context()).input_ids[:CONTEXT_TOKENS]
    messages = [
        {
            "role": "system",
            "content": "Answer from this documentation.\n\n" + tokenizer.decode(ids),
        },
        {"role": "user", "content": question},
    ]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def next_turn(tokenizer: Any, conversation: list[int], question: str) -> list[int]:
    """Token ids of a conversation that goes on with another question."""
    turn = f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return conversation + list(tokenizer(turn).input_ids)
