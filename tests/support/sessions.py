"""Batches of prompts for tiny models, sessions over a service in memory, and a chat template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.cache_utils import StaticLayer

from lexico_client import Client, InMemoryTransport
from lexico_client.hf import HuggingFaceCache, Session
from tests.support.answers import PAGE_TOKENS
from tests.support.client_fixtures import PATIENT

PAD = 0
PLAIN: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": PAD}
STATIC_COUNTS = isinstance(
    getattr(StaticLayer(max_cache_len=1), "cumulative_length", None), torch.Tensor
)
"""Whether this transformers counts the tokens of a static cache, and not what is not zero there."""


def batch_of(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Prompts with padding on the left, and their mask."""
    most = max(map(len, rows))
    ids = [[PAD] * (most - len(row)) + list(row) for row in rows]
    mask = [[0] * (most - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def ids_of(tokens: int, seed: int) -> list[int]:
    """Random token ids, none of them padding."""
    generator = torch.Generator().manual_seed(seed)
    made: list[int] = torch.randint(1, 97, (tokens,), generator=generator).tolist()
    return made


@contextmanager
def sharing(
    model: Any, folder: Path, transport: Any = None, **changes: Any
) -> Iterator[HuggingFaceCache]:
    """The caches of a model, codec raw in pages of 8 tokens."""
    with Client(
        transport=transport or InMemoryTransport(), dictionaries_dir=folder, timeouts=PATIENT
    ) as client:
        settings: dict[str, Any] = {"codec": "raw", "page_tokens": PAGE_TOKENS}
        yield HuggingFaceCache(client, model, **settings | changes)


def warmed(session: Session, rows: Sequence[Sequence[int]]) -> None:
    """Stores the full pages of prompts."""
    for row in rows:
        report = session.generate(torch.tensor([row]), **PLAIN | {"max_new_tokens": 1}).report
        assert [outcome.error for outcome in report.offloads()] == [None]


def outcomes_of(report: Any) -> list[str]:
    """What became of each sequence's pages, by their first letters."""
    return [
        "".join(page[0] for page in outcome.report.pages) if outcome.report else str(outcome.error)
        for outcome in report.offloads()
    ]


def words_of(ids: Iterable[int]) -> str:
    """The text of token ids, for `chat_tokenizer`."""
    return " ".join(f"w{number}" for number in ids)


def chat_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """One that splits at spaces; its words are those of `words_of`."""
    words = {"<pad>": PAD, "<unk>": 1} | {f"w{number}": number for number in range(2, 97)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", chat_template=template
    )
