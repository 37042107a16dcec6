"""One text stored one way: everything that is measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from lexico_codec.evaluation.caches import cache_of, forward
from lexico_codec.evaluation.fidelity import judge, through_frames, through_shelf
from lexico_codec.evaluation.peer_shelf import PeerShelf, Weigh
from lexico_codec.evaluation.peers import (
    FAILURES,
    Peer,
    calibrate,
    importance_of,
    training_prefix,
)
from lexico_codec.evaluation.prefixes import ExactText, exact_text
from lexico_codec.evaluation.retrieval import ExactTask, Task, ask, exact_task
from lexico_codec.evaluation.settings import EvalSettings
from lexico_codec.evaluation.shelf import FrameShelf, OpenShelf
from lexico_codec.evaluation.state import Unit
from lexico_codec.evaluation.turns import ExactTurns, converse, exact_turns
from lexico_codec.evaluation.ways import Way
from lexico_codec.geometry import Rope
from lexico_proto.errors import DictionaryMismatch

WARM_UP_TOKENS = 32


@dataclass(frozen=True, eq=False)
class JudgedText:
    """A text, and what a node without compression makes of it, found when it is asked for."""

    model: Any
    settings: EvalSettings
    ids: tuple[int, ...]
    task: Task | None

    @cached_property
    def exact(self) -> ExactText:
        """Prefix and continuation."""
        forward(self.model, self.ids[:WARM_UP_TOKENS], cache_of(torch.empty(0, 0, 0, 0, 0)), 1)
        return exact_text(self.model, self.ids, self.settings)

    @cached_property
    def turns(self) -> ExactTurns:
        """The conversation."""
        return exact_turns(self.model, self.ids, self.settings)

    @cached_property
    def asked(self) -> ExactTask | None:
        """The questions."""
        return None if self.task is None else exact_task(self.model, self.task)

    @cached_property
    def importance(self) -> Tensor:
        """Of the prefix's tokens, for peers."""
        return importance_of(self.model, self.ids[: self.settings.prefix])

    def find_all(self) -> None:
        """Finds it now: what the model itself fails at is no failure of a way to store."""
        _ = self.exact, self.asked, self.settings.turns and self.turns


class Judge:
    """Measures units; the first of each way after a warm-up of its kernels."""

    def __init__(
        self, model: Any, settings: EvalSettings, training: Sequence[Sequence[int]]
    ) -> None:
        """
        Args:
            model: the model.
            settings: the run.
            training: token ids of texts that peers learn from.
        """
        self._model, self._settings = model, settings
        self._training = training
        self._warm: set[str] = set()
        self._failed: dict[str, str] | None = None

    def of_way(self, text: JudgedText, way: Way) -> Unit:
        """A codec of ours, through frames, or why it refuses to code this text over its set."""
        text.find_all()
        try:
            return self._of_way(text, way)
        except DictionaryMismatch as error:  # found while coding: a set of other weights
            return {"failed": error.message}

    def of_peer(self, text: JudgedText, peer: Peer, peers: Sequence[Peer], rope: Rope) -> Unit:
        """A published method, or why it cannot store this text; turns and retrieval too where
        methods were asked for by name.

        Args:
            text: the text.
            peer: the method.
            peers: all of them: they learn together, when the first is asked for.
            rope: of the model.
        """
        if self._failed is None:
            prefixes = [training_prefix(self._model, ids, rope) for ids in self._training]
            self._failed = calibrate(peers, prefixes)
        if peer.name in self._failed:
            return {"failed": self._failed[peer.name]}
        if self._settings.peer:
            text.find_all()
        exact, coded = text.exact, self._settings.coded

        def opened(weigh: Weigh) -> PeerShelf:
            return PeerShelf(peer, rope, self._settings.page_tokens, weigh)

        try:
            shelf = opened(lambda *_: text.importance)
            made = through_shelf(exact, shelf, coded)
            unit: Unit = {"fidelity": judge(self._model, exact, made, shelf.size, coded)}
            if self._settings.peer:
                unit |= self._reloaded(text, partial(opened, partial(importance_of, self._model)))
        except FAILURES as error:
            return {"failed": str(error)}
        return unit

    def _of_way(self, text: JudgedText, way: Way) -> Unit:
        exact, settings = text.exact, self._settings
        if way.name not in self._warm:
            page = exact.ids[: settings.page_tokens + 1]
            shelf = FrameShelf(way)
            shelf.store(page, exact.states)
            shelf.reload(page, exact.states.dtype, exact.states.device)
            self._warm.add(way.name)
        made, shelf = through_frames(exact, way, settings.coded)
        return {
            "fidelity": judge(self._model, exact, made, shelf.size, settings.coded),
            **self._reloaded(text, partial(FrameShelf, way)),
            "times": {
                "prefill_s": exact.prefill_s,
                "encode_s": shelf.encode_s,
                "decode_s": shelf.decode_s,
            },
        }

    def _reloaded(self, text: JudgedText, open_shelf: OpenShelf) -> Unit:
        """Turns and retrieval."""
        settings, asked = self._settings, text.asked
        turns = converse(self._model, text.turns, open_shelf, settings) if settings.turns else []
        return {
            "turns": turns,
            "retrieval": {} if asked is None else ask(self._model, asked, open_shelf),
            "retrieval_exact": {} if asked is None else asked.answers(),
        }
