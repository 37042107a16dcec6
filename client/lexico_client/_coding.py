"""What a model's pages are coded with: a codec and its set, or lossless until there is a set."""

from __future__ import annotations

import logging
import random
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from lexico_client._coding_counts import CodingCounts
from lexico_codec.codecs.codec import Codec
from lexico_codec.forks import renew_in_children
from lexico_codec.presets import codec_named, spoken
from lexico_codec.sets.choose import choose, is_built_in, set_of
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.sets.models import model_names
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import (
    ConfigurationError,
    DamagedFrame,
    DictionaryMismatch,
    InvalidInput,
    LexicoError,
    UnknownDictionary,
    Unsupported,
)
from lexico_proto.v1 import dictionaries_pb2 as pb

_log = logging.getLogger(__name__)

WithoutSet = Literal["lossless", "refuse"]
"""What a model does for which there is no set: share its pages lossless until there is one, or be
refused."""

_WITHOUT_SET: Final = ("lossless", "refuse")
_JITTER: Final = 0.25
"""Part of the time between two looks by which it differs, so that nodes do not ask together."""
_MOST_WAITING: Final = 16
"""Times the usual time between two looks that pass after failures, at most."""
_OLDER: Final = Unsupported.reason
"""How a server ends a call that it does not know."""
_MOST_REFUSED: Final = 16
"""Sets that did not fit which are remembered."""
_FOR_GOOD: Final = (DictionaryMismatch, InvalidInput)
"""A set refused so is refused always: its digest names its bytes."""
_SEEN: Final = (*_FOR_GOOD, DamagedFrame, UnknownDictionary)
"""What is wrong with a set, and not with the way to it."""

Find = Callable[[pb.FindRequest], Awaitable[pb.FindResponse]]
Fetch = Callable[[bytes], Awaitable[DictionarySet]]


@dataclass(frozen=True)
class _Chosen:
    codec: Codec
    dictionary: DictionarySet | bytes | None
    """The set, or its digest alone; None where the codec needs none."""
    source: str
    """Of `lexico_proto.metrics.SETS`."""
    until: float = 0.0
    """Time of the clock up to which pages from before may be stored."""

    def of(self, base: CacheSpec) -> CacheSpec:
        digest = self.dictionary
        if self.codec == base.codec and digest is None:
            return base  # with the groups that it has
        if isinstance(digest, DictionarySet):
            digest = digest.digest
        return replace(base, codec=self.codec, dictionary=digest or b"", group_layers=0)


class Coding:
    """Which codec and set new pages of a model have. `coding` of both clients makes it.

    It changes at most once: from lossless to what was asked for, when a set for the model is
    published. So two calls may be of two specs; within one, a spec is taken once. Any thread may
    call it.
    """

    def __init__(
        self,
        base: CacheSpec,
        codec: str,
        codec_config: Mapping[str, Any] | None,
        dictionary: DictionarySet | bytes | None,
        *,
        known_positions: bool = True,
        model: str,
        every: float,
        counts: CodingCounts,
        kick: Callable[[Coding], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            base: what pages are of while there is no set, which needs none.
            codec, codec_config, dictionary, known_positions, model: as `AsyncClient.coding` has
                them.
            every: seconds between two looks for a set.
            counts: where it is counted as what it is.
            kick: has `look` called soon; must not wait.
            clock: seconds.

        Raises:
            UnknownCodec, ConfigurationError, DictionaryMismatch: as `AsyncClient.coding`.
        """
        if base.codec.needs_dictionary or not base.codec.lossless:
            raise ConfigurationError(
                f"spec: codec {base.codec.name}: pages without a set need one that is lossless"
            )
        asked, geometry = codec_named(codec, codec_config), base.whole_geometry
        if not known_positions:
            asked = asked.without_positions()
        self._asked = asked
        self._spoken = spoken(codec)
        self._base = base
        self._model = model
        self._every = every
        self._counts = counts
        self._kick = kick
        self._clock = clock
        self._due = 0.0
        self._failures = 0
        self._looking = False
        self._unasked = ""
        """Reason that the last look failed for."""
        self._complained: dict[bytes, bool] = {}
        """Digest of a set that was spoken of → whether it is refused for good."""
        self._chosen: _Chosen | None = None
        self._last: tuple[CacheSpec, _Chosen, CacheSpec] | None = None
        if dictionary is not None or not asked.needs_dictionary or is_built_in(asked, geometry):
            source = "given" if dictionary is not None else "built-in"
            taken, found = choose(asked, dictionary, geometry, self._spoken)
            self._chosen = _Chosen(taken, found, source if asked.needs_dictionary else "not-needed")
            self._chosen.of(base)  # what cannot be coded is refused now
        counts.add(self)
        renew_in_children(self)

    def after_fork(self) -> None:
        """A look of the parent is none of the child's."""
        self._looking = False

    def look_by(self, kick: Callable[[Coding], None]) -> None:
        """Has `kick` bring about the looks from now on."""
        self._kick = kick

    @property
    def waiting(self) -> bool:
        """Whether there is no set yet, and new pages are lossless."""
        return self._chosen is None

    @property
    def codec(self) -> Codec:
        """What new pages are coded with now."""
        chosen = self._chosen
        return self._base.codec if chosen is None else chosen.codec

    @property
    def source(self) -> str:
        """Where the set comes from: given, built-in, published, not-needed, missing."""
        chosen = self._chosen
        return "missing" if chosen is None else chosen.source

    @property
    def dictionary(self) -> DictionarySet | None:
        """The set that is in use, where it is at hand."""
        found = None if self._chosen is None else self._chosen.dictionary
        return found if isinstance(found, DictionarySet) else None

    def spec(self, base: CacheSpec) -> CacheSpec:
        """What new pages belong to, from now on.

        Args:
            base: of the model as it is now, with the lossless codec.
        """
        chosen = self._chosen
        if chosen is None:
            self._look_when_due()
            return base
        last = self._last
        if last is not None and last[0] is base and last[1] is chosen:
            return last[2]
        made = chosen.of(base)
        self._last = base, chosen, made
        return made

    def former(self, base: CacheSpec) -> CacheSpec | None:
        """What pages belong to that were stored before the set came, while some may be there."""
        chosen = self._chosen
        return base if chosen is not None and self._clock() < chosen.until else None

    def refuse(self) -> None:
        """
        Raises:
            ConfigurationError: there is no set.
        """
        if self.waiting:
            choose(self._asked, None, self._base.whole_geometry, self._spoken)

    def say(self, *, elsewhere: bool = False) -> None:
        """Logs that there is no set, and how to make one: once, at the start.

        Args:
            elsewhere: the weights are not as the model's files have them.
        """
        tokens, geometry = self._base.page_tokens, self._base.whole_geometry
        most = self._base.codec.encoded_bytes(geometry, tokens)
        times = round(most / max(1, self._asked.encoded_bytes(geometry, tokens)))
        unasked = ""
        if self._unasked:
            old = ": a server of an earlier release?" if self._unasked == _OLDER else ""
            unasked = f" (published ones could not be asked for, {self._unasked}{old})"
        _log.warning(
            "no set for %s with %s%s: running lossless%s; train one by: lexico train --model %s "
            "--text TEXT --out SET.safetensors --codec %s --register%s",
            self._model or "the model",
            self._spoken,
            unasked,
            f", up to {times} times the bytes" if times > 1 else "",
            shlex.quote(self._model) if self._model else "MODEL",
            set_of(self._asked),
            " --any-weights" if elsewhere else "",
        )

    async def look(self, find: Find, fetch: Fetch) -> None:
        """Asks once whether a set is published, and takes it over if it fits.

        Quiet where the service cannot be asked: the next look comes later then.

        Args:
            find: asks the service.
            fetch: the set of a digest, checked to be the one.
        """
        if self._chosen is not None or self._looking:
            return
        self._looking = True
        try:
            names = model_names(self._base.weights, self._base.whole_geometry)
            answer = await find(pb.FindRequest(models=names, codec=self._asked.name))
            if answer.digest and not self._complained.get(answer.digest):
                await self._take(answer, fetch)
            self._failures, self._unasked = 0, ""
        except LexicoError as error:
            self._failures += 1
            self._unasked = error.reason
            _log.debug("published sets not asked for: reason=%s error=%s", error.reason, error)
        finally:
            self._looking = False
            pause = self._every * min(2 ** min(self._failures, 8), _MOST_WAITING)
            self._due = self._clock() + pause * random.uniform(1 - _JITTER, 1 + _JITTER)

    def _look_when_due(self) -> None:
        if self._clock() >= self._due and not self._looking:
            self._due = self._clock() + self._every  # a kick that leads nowhere is not the last
            self._kick(self)

    async def _take(self, answer: pb.FindResponse, fetch: Fetch) -> None:
        """
        Raises:
            LexicoError: the set could not be had, and it is not the set's fault.
        """
        try:
            dictionary = await fetch(answer.digest)
            codec, _ = choose(self._asked, dictionary, self._base.whole_geometry, self._spoken)
            left = max(0.0, answer.page_ttl_s + self._every - answer.age_s)
            chosen = _Chosen(codec, dictionary, "published", self._clock() + left)
            chosen.of(self._base)
        except _SEEN as error:
            self._complain(answer.digest, error)
            return
        self._chosen = chosen
        self._counts.changed(self)
        _log.warning(
            "set taken for %s with %s: codec=%s set=%s trained_on=%r for=%s; pages stored lossless "
            "are found for %.0f s more",
            self._model or "the model",
            self._spoken,
            codec.name,
            dictionary.digest.hex(),
            dictionary.info.model,
            "every tenant" if answer.shared else "this tenant",
            left,
        )

    def _complain(self, digest: bytes, error: LexicoError) -> None:
        """Says once what is wrong with a set."""
        known = digest in self._complained
        while len(self._complained) >= _MOST_REFUSED:
            self._complained.pop(next(iter(self._complained)))
        self._complained[digest] = isinstance(error, _FOR_GOOD)
        self._counts.refused(error)
        if not known:
            _log.warning(
                "published set not taken for %s with %s, running lossless: set=%s reason=%s "
                "error=%s",
                self._model or "the model",
                self._spoken,
                digest.hex(),
                error.reason,
                error.message,
            )


def checked_without_set(word: str) -> WithoutSet:
    """
    Raises:
        ConfigurationError: none of the two words.
    """
    if word not in _WITHOUT_SET:
        raise ConfigurationError(f"without_set={word!r}: {' or '.join(_WITHOUT_SET)}")
    return word  # type: ignore[return-value]
