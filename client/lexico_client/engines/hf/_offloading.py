"""What a batch leaves in its cache: which tokens of it are worth a page, and sending them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lexico_client._async_client import Wait
from lexico_client.engines.hf._behind import Seldom
from lexico_client.engines.hf._fed_tokens import FedTokens
from lexico_client.engines.hf._generate_settings import GenerateSettings
from lexico_client.engines.hf._prefix import CachedPrefix
from lexico_client.engines.hf._prompts import Prompts
from lexico_client.engines.hf._reports import OffloadOutcome
from lexico_client.engines.hf._sending import send_prefix
from lexico_client.engines.hf._shared_cache import HuggingFaceCache
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import InternalError, LexicoError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """A sequence that the model has computed."""

    ids: list[int]
    """Of prompt and answer, the newest token among them, which has no keys and values yet."""
    row: int
    """Of the cache."""
    pad: int
    """Columns of padding before it."""


def finished(
    prompts: Prompts, settings: GenerateSettings, sequences: Tensor
) -> tuple[Finished, ...]:
    """The sequences of a batch, without what stands before prompts and behind answers.

    Of beams it is the prompts alone: the cache holds the beams of the last step, which are not the
    answers.

    Args:
        prompts: of the batch.
        settings: of the call.
        sequences: `[rows, columns]`, as `generate` returned them.
    """
    each = settings.expansion
    if settings.beams > 1:
        pairs = zip(prompts.rows, prompts.pads, strict=True)
        return tuple(Finished(ids, row * each, pad) for row, (ids, pad) in enumerate(pairs))
    found = []
    for row, answer in enumerate(sequences[:, prompts.columns :].tolist()):
        prompt = row // each
        ids = prompts.rows[prompt] + answer[: answer_tokens(answer, settings)]
        found.append(Finished(ids, row, prompts.pads[prompt]))
    return tuple(found)


def answer_tokens(answer: Sequence[int], settings: GenerateSettings) -> int:
    """Tokens of an answer up to its end. Rows that ended before others have padding behind that."""
    for at, token in enumerate(answer):
        if token in settings.eos:
            return at + 1
    count = len(answer)
    while count and answer[count - 1] == settings.pad:
        count -= 1
    return count


def prefixes(
    cache: Any,
    spec: CacheSpec,
    found: Sequence[Finished],
    fed: FedTokens,
    *,
    copied: bool,
) -> list[CachedPrefix]:
    """The full pages of each sequence, as far as the cache was made of its very tokens.

    Args:
        cache: of the batch.
        spec: of the pages.
        found: sequences.
        fed: what the model was given.
        copied: for a cache that is written to in place.
    """
    held, made = int(cache.get_seq_length()), []
    for each in found:
        tokens = min(held - each.pad, fed.agreeing(each.row, each.ids))
        tokens = max(0, tokens) // spec.page_tokens * spec.page_tokens
        prefix = CachedPrefix.of_row(
            cache, spec.geometry, each.row, each.pad, tokens, copied=copied
        )
        prefix.settle()
        made.append(prefix)
    return made


def send(
    shared: HuggingFaceCache,
    spec: CacheSpec,
    found: Sequence[Finished],
    held: Sequence[CachedPrefix],
    wait: Wait,
    seldom: Seldom,
) -> tuple[OffloadOutcome, ...]:
    """Offloads one sequence after another. Never raises."""
    outcomes = []
    for sequence, prefix in zip(found, held, strict=True):
        error: LexicoError
        try:
            report = send_prefix(
                shared._client, shared.coding, spec, sequence.ids, (), prefix, wait, None
            )
        except LexicoError as refused:
            error = refused
        except Exception as defect:  # noqa: BLE001 - nobody is there to catch it
            _log.exception("offload failed")
            error = InternalError("a sequence could not be offloaded")
            error.__cause__ = defect
        else:
            outcomes.append(OffloadOutcome(report, None))
            continue
        seldom.warn("offload failed reason=%s: %s", error.reason, error)
        outcomes.append(OffloadOutcome(None, error))
    return tuple(outcomes)
