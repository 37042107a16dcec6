"""Prompts of a batch: token ids with padding on the left, or messages that a template renders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lexico_proto.errors import InvalidInput, ShapeMismatch

Messages = Sequence[Mapping[str, Any]]
"""A conversation: dicts with `role` and `content`, as chat templates take them."""


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts as `generate` takes them."""

    ids: Tensor
    """`[rows, columns]`."""
    mask: Tensor
    """`[rows, columns]`: 0 for padding, all of which stands before the prompt."""
    rows: tuple[list[int], ...]
    """Token ids of each prompt, without padding."""
    pads: tuple[int, ...]
    """Columns of padding before each."""

    @property
    def columns(self) -> int:
        """Columns of the batch: tokens of the longest prompt, and more where all are padded."""
        return self.ids.shape[1]


def prompts_of(input_ids: Any, mask: Any, pad: int | None) -> Prompts:
    """A batch of token ids, looked at.

    Args:
        input_ids: `[rows, columns]`, integers.
        mask: of the same shape; it may be left out for one prompt.
        pad: the padding token, if there is one.

    Raises:
        ShapeMismatch: of another shape or type.
        InvalidInput: padding behind a prompt or within it, no token at all, or no mask where it is
            not clear what is padding.
    """
    integers = (torch.int64, torch.int32)
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.dtype not in integers:
        raise ShapeMismatch(
            f"input_ids {_kind(input_ids)}: a tensor of integers, [prompts, tokens], is needed; "
            "give a conversation as messages="
        )
    if mask is None:
        if input_ids.shape[0] > 1 or (pad is not None and bool((input_ids == pad).any())):
            raise InvalidInput(
                "attention_mask: several prompts, or one with the padding token, need it: "
                'tokenizer(texts, padding=True, padding_side="left", return_tensors="pt") makes it'
            )
        mask = torch.ones_like(input_ids)
    if not isinstance(mask, Tensor) or mask.shape != input_ids.shape:
        raise ShapeMismatch(
            f"attention_mask {_kind(mask)}: a tensor {tuple(input_ids.shape)} is needed"
        )
    flags, ids = mask.to(torch.int64).tolist(), input_ids.tolist()
    pads = tuple(_padding(row, flags[row]) for row in range(len(ids)))
    if not pads:
        raise ShapeMismatch("input_ids: no prompt was given")
    rows = tuple(row[pad:] for row, pad in zip(ids, pads, strict=True))
    return Prompts(input_ids, mask, rows, pads)


def rendered(
    messages: Any, tokenizer: Any, template: Mapping[str, Any], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids and mask of conversations, each up to where the model is to answer.

    Args:
        messages: one conversation, or a list of them.
        tokenizer: that has a chat template.
        template: what the template is given beside the messages: `tools`, `enable_thinking`.
        device: of the model.

    Raises:
        InvalidInput: no tokenizer, none with a template, or messages that the template refuses.
    """
    if tokenizer is None or not hasattr(tokenizer, "apply_chat_template"):
        raise InvalidInput("messages need a tokenizer: Session(shared, tokenizer=tokenizer)")
    if not isinstance(messages, list | tuple) or not messages:
        raise InvalidInput("messages: a list of dicts with role and content is needed")
    several = all(isinstance(each, list | tuple) for each in messages)
    rows: list[list[int]] = []
    for conversation in messages if several else [messages]:
        try:
            made = tokenizer.apply_chat_template(
                list(conversation),
                **{"add_generation_prompt": True} | dict(template),
                tokenize=True,
                return_dict=True,
            )
        except Exception as error:  # a template may raise anything
            raise InvalidInput(f"messages: the chat template refuses them: {error}") from error
        if not made["input_ids"]:
            raise InvalidInput(
                f"messages: the chat template renders conversation {len(rows)} as no token"
            )
        rows.append(list(made["input_ids"]))
    most = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids = torch.tensor([[pad] * (most - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (most - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _kind(given: object) -> str:
    if isinstance(given, Tensor):
        return f"{tuple(given.shape)} of {given.dtype}"
    return type(given).__name__


def _padding(row: int, flags: list[int]) -> int:
    """Columns of padding before a prompt."""
    if 1 not in flags:
        raise InvalidInput(f"attention_mask: prompt {row} has no token")
    pad = flags.index(1)
    if flags != [0] * pad + [1] * (len(flags) - pad):
        raise InvalidInput(
            f"attention_mask: prompt {row} has padding behind its first token: generate needs it "
            'on the left, tokenizer.padding_side = "left"'
        )
    return pad
