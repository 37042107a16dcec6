"""`Session`: one call that reloads, generates, and offloads behind the answer."""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lexico_client._async_client import Wait
from lexico_client._settings import check_seconds
from lexico_client.engines.hf._batch_memory import (
    SHORT_OF_MEMORY,
    BatchMemory,
    StaticBatchMemory,
    refuse_uncounted,
    short_of_memory,
)
from lexico_client.engines.hf._behind import Behind, Seldom
from lexico_client.engines.hf._beside_ids import cast_to
from lexico_client.engines.hf._catching_up import catch_up, start_column
from lexico_client.engines.hf._fed_tokens import FedTokens, note_fed
from lexico_client.engines.hf._generate_settings import (
    GenerateSettings,
    ending_tokens,
    generate_settings,
)
from lexico_client.engines.hf._offloading import Finished, finished, prefixes, send
from lexico_client.engines.hf._plain_models import base_model
from lexico_client.engines.hf._prompts import Messages, Prompts, prompts_of, rendered
from lexico_client.engines.hf._reports import (
    Generated,
    GenerateReport,
    OffloadOutcome,
    PromptReport,
)
from lexico_client.engines.hf._row_loads import load_rows
from lexico_client.engines.hf._sharded import refuse_slice
from lexico_client.engines.hf._shared_cache import HuggingFaceCache
from lexico_client.engines.hf._token_ids import checked_count
from lexico_client.engines.hf._watched_model import cast_words, settings_of, watch
from lexico_codec.hf_inputs import cache_inputs
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import (
    Busy,
    ConfigurationError,
    InvalidInput,
    LexicoError,
    Unsupported,
)

MAX_PENDING: Final = 4
"""Calls whose offload runs or waits. Each keeps the memory of its cache."""
_REMEMBERED: Final = 64
"""Sequences that a session remembers the tokens of."""


@dataclass(frozen=True)
class _Begun:
    """A batch that `generate` can go on with."""

    spec: CacheSpec
    """Of new pages."""
    cache: Any
    columns: int
    """That it holds."""
    computed: int
    """Tokens, of prompts that were behind others."""
    reports: tuple[PromptReport, ...]
    load_seconds: float


class Session:
    """`generate` of a model, with its prompt caches shared: before an answer what the service has
    of the prompts is reloaded, and behind it what the service lacks is offloaded.

    Whatever fails of either makes an answer slower, never another one, and is told in its report.
    A session may be used from any number of threads.
    """

    def __init__(
        self,
        shared: HuggingFaceCache,
        *,
        tokenizer: Any = None,
        wait: Wait = "committed",
        max_pending: int = MAX_PENDING,
    ) -> None:
        """
        Args:
            shared: the caches of the model.
            tokenizer: of the model; needed for `messages`.
            wait: what an offload waits for, as `HuggingFaceCache.offload` has it.
            max_pending: calls whose offload may run or wait at a time, 1 or more. Further answers
                are not offloaded, and say so: `Busy`.

        Raises:
            Unsupported: a model without `generate`, one that takes more than token ids, or a slice
                of one.
            ConfigurationError: a number that cannot be used.
        """
        model: Any = shared._model
        if not callable(getattr(model, "generate", None)):
            raise Unsupported(f"{type(model).__name__} has no generate: give the whole model")
        if shared._digests:
            raise Unsupported(
                "a Session shares token ids alone: for pictures and sound call load() and offload()"
            )
        refuse_slice(model, "a Session needs all of it in this process")
        if wait not in ("committed", "received"):
            raise ConfigurationError(f'wait={wait!r}: "committed" or "received"')
        self._shared = shared
        self._model = model
        self._tokenizer = tokenizer
        self._wait: Wait = wait
        most = checked_count("max_pending", max_pending, 1)
        self._behind = Behind[tuple[OffloadOutcome, ...]]("lexico-offload", most)
        self._seldom = Seldom()
        self._known = deque[npt.NDArray[np.int64]](maxlen=_REMEMBERED)
        watch(model)

    def generate(
        self,
        input_ids: Tensor | None = None,
        *,
        messages: Messages | list[Messages] | None = None,
        attention_mask: Tensor | None = None,
        tokenizer: Any = None,
        template: Mapping[str, Any] | None = None,
        offload: bool = True,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Generated:
        """As the model's `generate`, with what the service has of each prompt.

        Prompts may be reloaded to different lengths: each goes to its place in the padded batch,
        and those that are behind the others are brought up to them first.

        Args:
            input_ids: `[prompts, tokens]`, with padding on the left, as `generate` takes it.
            messages: in place of it one conversation, a list of dicts with `role` and `content`,
                or a list of conversations.
            attention_mask: `[prompts, tokens]`; needed for several prompts.
            tokenizer: in place of the session's.
            template: what the chat template is given beside messages.
            offload: whether the answer's cache is offloaded.
            timeout: seconds for the reload of all prompts, in place of `Timeouts.load`.
            kwargs: whatever `generate` takes. `cache_implementation` may be "static".

        Returns:
            The output of `generate`, and a report of what was reloaded and offloaded.

        Raises:
            InvalidInput: prompts or arguments that cannot be used here, before anything is done.
            Unsupported: arguments that go about their cache in another way, likewise.
            ConfigurationError: a timeout that is no time.
            Exception: what the model's `generate` raises.
        """
        seconds = self._shared._client._timeouts.load
        if timeout is not None:
            seconds = check_seconds("timeout", timeout)
        tokenizer = self._tokenizer if tokenizer is None else tokenizer
        prompts = self._prompts(input_ids, messages, attention_mask, tokenizer, template, kwargs)
        settings = generate_settings(self._model, kwargs, prompts.columns)
        if settings.static:
            refuse_uncounted()
        if settings.tokenizer:
            kwargs["tokenizer"] = tokenizer
        try:
            begun = self._begin(prompts, settings, seconds)
        except SHORT_OF_MEMORY as error:
            return self._plain(prompts, settings, short_of_memory(error), kwargs)
        except LexicoError as error:
            return self._plain(prompts, settings, error, kwargs)
        cache, start = begun.cache, begun.columns
        fed = _fed(prompts, settings, start)
        note_fed(cache, fed)
        try:
            output = self._model.generate(
                prompts.ids,
                attention_mask=prompts.mask,
                **cache_inputs(base_model(self._model), cache),
                **kwargs,
            )
        finally:
            note_fed(cache, None)
        found = self._finished(prompts, settings, output)
        report = GenerateReport(
            prompts=begun.reports,
            prefilled_tokens=begun.computed + len(prompts.rows) * (prompts.columns - start),
            load_seconds=begun.load_seconds,
            _offloads=self._offload(begun.spec, cache, found, fed, settings, wanted=offload),
        )
        return Generated(output, report, prompts.columns)

    def drain(self, timeout: float | None = None) -> bool:
        """Waits for the offloads of earlier answers.

        Args:
            timeout: seconds; None for as long as they take.

        Returns:
            Whether all have ended.
        """
        return self._behind.drain(timeout)

    def close(self, timeout: float | None = None) -> bool:
        """As `drain`, and offloads nothing any more. The client is left open."""
        return self._behind.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(None if kind is None else 0.0)

    def _prompts(
        self,
        input_ids: Tensor | None,
        messages: Any,
        mask: Tensor | None,
        tokenizer: Any,
        template: Mapping[str, Any] | None,
        kwargs: Mapping[str, Any],
    ) -> Prompts:
        if (input_ids is None) == (messages is None):
            raise InvalidInput("give either input_ids or messages")
        if messages is not None and mask is not None:
            raise InvalidInput(
                "attention_mask goes with input_ids: messages have one made for them"
            )
        if messages is not None:
            base: Any = base_model(self._model)
            input_ids, mask = rendered(messages, tokenizer, template or {}, base.device)
        setting = settings_of(self._model, (), dict(kwargs))
        pad = setting("pad_token_id")
        # One that ends answers too, as `generate` has it, tells nothing of padding.
        return prompts_of(input_ids, mask, None if pad in ending_tokens(setting) else pad)

    def _begin(self, prompts: Prompts, settings: GenerateSettings, seconds: float) -> _Begun:
        """Reloads what the service has of the prompts, and brings those up that are behind.

        Raises:
            LexicoError: nothing can be shared now.
        """
        began = time.perf_counter()
        model: Any = base_model(self._model)
        cast = cast_to(model.dtype, model.device)
        if cast is not None:
            raise Unsupported(cast_words(cast, model))
        base = self._shared._of_now()
        spec = self._shared.coding.spec(base)
        kind = StaticBatchMemory if settings.static else BatchMemory
        capacity = prompts.columns + settings.room(prompts.columns)
        memory = kind(spec.geometry, model.config, len(prompts.rows), capacity, model.device)
        refused = self._refused(prompts, settings)
        loads = load_rows(self._shared, base, memory, prompts, refused, self._familiar, seconds)
        load_seconds = time.perf_counter() - began
        most = 0 if settings.whole else min((prompts.pads[row] for row in refused), default=None)
        start = start_column(loads.ready, prompts.columns, most)
        computed = catch_up(self._model, loads.memory, prompts, loads.ready, start)
        cache = loads.memory.cache(start)
        if start and settings.expansion > 1:
            cache.batch_repeat_interleave(settings.expansion)
        return _Begun(spec, cache, start, computed, loads.reports, load_seconds)

    def _refused(self, prompts: Prompts, settings: GenerateSettings) -> dict[int, LexicoError]:
        """Rows that are not reloaded, and why."""
        if settings.whole:
            return dict.fromkeys(range(len(prompts.rows)), Unsupported(settings.whole))
        if "position_ids" in inspect.signature(type(base_model(self._model)).forward).parameters:
            return {}
        error = Unsupported("the model takes no position_ids, which padding needs")
        return {row: error for row, pad in enumerate(prompts.pads) if pad}

    def _plain(
        self,
        prompts: Prompts,
        settings: GenerateSettings,
        error: LexicoError,
        kwargs: dict[str, Any],
    ) -> Generated:
        """`generate` alone, where nothing can be shared."""
        static = {"cache_implementation": "static"} if settings.static else {}
        output = self._model.generate(prompts.ids, attention_mask=prompts.mask, **static, **kwargs)
        found = self._finished(prompts, settings, output)
        reports = tuple(
            PromptReport(len(ids), 0, 0, 0, error, self._familiar(ids)) for ids in prompts.rows
        )
        outcomes = tuple(OffloadOutcome(None, error) for _ in found)
        tokens = len(prompts.rows) * prompts.columns
        return Generated(
            output, GenerateReport(reports, tokens, 0.0, _ended(outcomes)), prompts.columns
        )

    def _finished(
        self, prompts: Prompts, settings: GenerateSettings, output: Any
    ) -> tuple[Finished, ...]:
        sequences: Tensor = getattr(output, "sequences", output)
        found = finished(prompts, settings, sequences)
        self._known.extend(np.array(each.ids, np.int64) for each in found)
        return found

    def _offload(
        self,
        spec: CacheSpec,
        cache: Any,
        found: tuple[Finished, ...],
        fed: FedTokens,
        settings: GenerateSettings,
        *,
        wanted: bool,
    ) -> Future[tuple[OffloadOutcome, ...]]:
        if not wanted:
            return _ended(())
        try:
            now = self._shared.spec
            if (now.weights, now.lora) != (spec.weights, spec.lora):
                raise InvalidInput("the model changed while it generated: nothing is offloaded")
            held = prefixes(cache, spec, found, fed, copied=settings.static)
        except SHORT_OF_MEMORY as error:
            short = short_of_memory(error)
            return _ended(tuple(OffloadOutcome(None, short) for _ in found))
        except LexicoError as error:
            return _ended(tuple(OffloadOutcome(None, error) for _ in found))
        started = self._behind.begin(
            lambda: send(self._shared, spec, found, held, self._wait, self._seldom)
        )
        if started is not None:
            return started
        busy = Busy("earlier answers are still being offloaded, or the session is closed")
        self._seldom.warn("offload skipped reason=%s: %s", busy.reason, busy)
        return _ended(tuple(OffloadOutcome(None, busy) for _ in found))

    def _familiar(self, ids: list[int]) -> int:
        """Leading tokens that a prompt shares with the sequence that it shares most with."""
        mine = np.array(ids, np.int64)
        return max((_common(mine, known) for known in list(self._known)), default=0)


def _common(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> int:
    count = min(len(one), len(other))
    differs = np.flatnonzero(one[:count] != other[:count])
    return int(differs[0]) if len(differs) else count


def _fed(prompts: Prompts, settings: GenerateSettings, start: int) -> FedTokens:
    each = settings.expansion
    pads = tuple(pad for pad in prompts.pads for _ in range(each))
    held = prompts.ids[:, :start].repeat_interleave(each, 0)
    return FedTokens(held, pads, prompts.columns)


def _ended(outcomes: tuple[OffloadOutcome, ...]) -> Future[tuple[OffloadOutcome, ...]]:
    made = Future[tuple[OffloadOutcome, ...]]()
    made.set_result(outcomes)
    return made
