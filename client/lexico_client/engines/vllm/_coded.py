"""What an engine's pages are coded with, and what of a prompt is stored so.

The scheduler's side decides it, since it alone promises: a set that is published later is taken
over there, and every order says what its pages belong to. A worker that has not the set gets it by
its digest.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lexico_client._coding import Coding
from lexico_client._loop_thread import Call
from lexico_client.engines._service import Service
from lexico_client.engines.vllm._config import ConnectorConfig
from lexico_codec.codecs.codec import Codec
from lexico_codec.presets import codec_named, spoken
from lexico_codec.sets.choose import choose, is_built_in
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import ConfigurationError, LexicoError


class Found(NamedTuple):
    """What of a prompt is stored."""

    spec: CacheSpec
    """What new pages belong to."""
    pages: int
    """Leading pages that are stored so."""
    source: CacheSpec
    """What a load is of: `spec`, or that of before a set was taken over, where that gives more."""
    there: int
    """Leading pages of `source` that are stored."""

    @classmethod
    def nothing(cls, spec: CacheSpec) -> Found:
        """No page, of a prompt that has none, say."""
        return cls(spec, 0, spec, 0)


@dataclass(frozen=True)
class Finder:
    """Asks the service for prompts, by what they are coded with at the time."""

    service: Service
    coding: Coding
    recent_tokens: int
    """As `CacheSpec.reloadable_tokens` has it."""
    seconds: float
    """That an answer may take."""

    @property
    def codec(self) -> Codec:
        """What new pages are coded with now."""
        return self.coding.codec

    def begin(self, base: CacheSpec, token_ids: npt.NDArray[np.uint32]) -> Call[Found]:
        """Begins to ask, and returns at once.

        Args:
            base: what the prompt's pages belong to without a set.
            token_ids: the prompt.

        Raises:
            LexicoError: the service's loop has ended.
        """
        return self.service.begin(self._found(base, token_ids), self.seconds)

    async def _found(self, base: CacheSpec, token_ids: npt.NDArray[np.uint32]) -> Found:
        """
        Raises:
            LexicoError: the service could not answer.
        """
        client, tokens = self.service.client, len(token_ids)
        clock = asyncio.get_running_loop().time
        end = clock() + self.seconds
        now, former = self.coding.spec(base), self.coding.former(base)
        pages = (await client.match(now, token_ids, timeout=self.seconds)).pages
        found = Found(now, pages, now, pages)
        usable = self._usable(now, pages, tokens)
        if former is None or usable == now.reloadable_tokens(tokens, self.recent_tokens):
            return found
        try:
            left = max(end - clock(), 0.001)
            before = (await client.match(former, token_ids, timeout=left)).pages
        except LexicoError:
            return found  # a part of the answer is one
        if self._usable(former, before, tokens) > usable:
            return found._replace(source=former, there=before)
        return found

    def _usable(self, spec: CacheSpec, pages: int, tokens: int) -> int:
        """Tokens of a prompt that a load of so many pages would give."""
        most = spec.reloadable_tokens(tokens, self.recent_tokens)
        return min(most, pages * spec.page_tokens)


def set_at_hand(settings: ConnectorConfig, spec: CacheSpec) -> DictionarySet | None:
    """The set that was given or is built in; None where it is known by its digest alone, where
    there is none yet, and for a codec that needs none.

    Args:
        settings: of the connector.
        spec: of the model.

    Raises:
        ConfigurationError: naming the setting.
    """
    try:
        codec = codec_named(settings.codec, settings.codec_config)
        given, geometry = settings.dictionary_given(), spec.whole_geometry
        if given is None and not (codec.needs_dictionary and is_built_in(codec, geometry)):
            return None
        _, found = choose(codec, given, geometry, spoken(settings.codec))
    except LexicoError as error:
        raise ConfigurationError(f"{settings.where}: codec: {error.message}") from error
    return found if isinstance(found, DictionarySet) else None
