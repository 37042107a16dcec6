"""An inference node: a real model, a client, nothing else. Benchmarks use it too."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from lexico_client import Client
from lexico_client.hf import Hit, HuggingFaceCache, weights_fingerprint
from lexico_codec.hf_inputs import cache_inputs
from lexico_lab.models import load_model


@dataclass(frozen=True)
class FirstToken:
    """Logits of the first token after a prompt, and how they came about."""

    logits: Tensor
    """`[vocabulary]`, float32."""
    cache: DynamicCache
    """Of the whole prompt."""
    seconds: float
    hit: Hit | None = None
    """None for a recomputed prompt."""


class Node:
    """SmolLM2 with one `HuggingFaceCache` a codec."""

    def __init__(self, client: Client, *, codecs: tuple[str, ...], page_tokens: int) -> None:
        """
        Args:
            client: the way to the service.
            codecs: codecs to share caches in.
            page_tokens: tokens a page.
        """
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        loaded = load_model("smollm2")
        self.model: Any = loaded.model
        self.tokenizer: Any = loaded.tokenizer
        weights = weights_fingerprint(self.model)
        self.caches = {
            codec: HuggingFaceCache(
                client, self.model, codec=codec, page_tokens=page_tokens, weights=weights
            )
            for codec in codecs
        }
        self.recompute(self.tokenizer("What is prefilled first takes longer.").input_ids)

    @torch.inference_mode()
    def recompute(self, ids: list[int]) -> FirstToken:
        """Prefills the whole prompt."""
        started = time.perf_counter()
        cache = DynamicCache(config=self.model.config)
        logits = self._forward(ids, cache, keep=1)[-1]
        return FirstToken(logits, cache, time.perf_counter() - started)

    @torch.inference_mode()
    def reload(self, ids: list[int], codec: str) -> FirstToken:
        """Reloads what a node takes of the prompt's pages and prefills the rest."""
        started = time.perf_counter()
        hit = self.caches[codec].load(ids)
        logits = self._forward(ids[hit.tokens :], hit.cache, keep=1)[-1]
        return FirstToken(logits, hit.cache, time.perf_counter() - started, hit)

    @torch.inference_mode()
    def answer(self, first: FirstToken, tokens: int) -> tuple[list[int], Tensor]:
        """Greedy continuation of at most so many tokens, up to the end of the turn.

        Returns:
            The tokens, and log-probabilities as of `distributions`; `first.cache` grows.
        """
        made: list[int] = []
        rows = [first.logits]
        while len(made) < tokens:
            token = int(rows[-1].argmax())
            if token == self.tokenizer.eos_token_id:
                break
            made.append(token)
            rows.append(self._forward([token], first.cache)[-1])
        return made, torch.stack(rows).log_softmax(-1)

    @torch.inference_mode()
    def distributions(self, first: FirstToken, continuation: list[int]) -> Tensor:
        """Log-probabilities of every next token along a given continuation.

        Returns:
            `[1 + len(continuation), vocabulary]` float32; `first.cache` stays as it is.
        """
        cache = copy.deepcopy(first.cache)
        following = self._forward(continuation, cache) if continuation else None
        rows = [first.logits[None]] if following is None else [first.logits[None], following]
        return torch.cat(rows).log_softmax(-1)

    def _forward(self, ids: list[int], cache: DynamicCache, keep: int = 0) -> Tensor:
        """Logits `[tokens, vocabulary]` of the last `keep` of these tokens, or of all for 0."""
        output = self.model(
            torch.tensor([ids]),
            **cache_inputs(self.model, cache),
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: Tensor = output.logits[0].float()
        return logits
