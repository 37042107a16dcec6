"""One text stored one way: everything that is measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from lexico_codec.geometry import Rope
from lexico_lab.evaluation.evictions import EVICTION_FAILURES, Evicted
from lexico_lab.evaluation.fidelity import judge, through_frames, through_shelf
from lexico_lab.evaluation.peer_shelf import PeerShelf, Weigh
from lexico_lab.evaluation.peers import (
    FAILURES,
    Evicting,
    Peer,
    calibrate,
    importance_of,
    training_prefix,
)
from lexico_lab.evaluation.prefixes import ExactText, exact_text, prefill_seconds
from lexico_lab.evaluation.retrieval import ExactTask, Task, ask, exact_task
from lexico_lab.evaluation.settings import EvalSettings
from lexico_lab.evaluation.shelf import FrameShelf, OpenShelf
from lexico_lab.evaluation.state import Unit, encoded
from lexico_lab.evaluation.turns import ExactTurns, converse, exact_turns
from lexico_lab.evaluation.ways import Way
from lexico_proto.errors import DictionaryMismatch


@dataclass(frozen=True, eq=False)
class JudgedText:
    """A text, and what a node without compression makes of it, found when it is asked for."""

    model: Any
    settings: EvalSettings
    ids: tuple[int, ...]
    task: Task | None
    instruction: tuple[int, ...] = ()
    """Asks to repeat a text, for peers that evict."""

    @cached_property
    def exact(self) -> ExactText:
        """Prefix and continuation."""
        return exact_text(self.model, self.ids, self.settings)

    @cached_property
    def prefill_s(self) -> float:
        """Seconds to prefill the tokens that are stored."""
        return prefill_seconds(self.model, self.ids[: self.settings.coded])

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

    @cached_property
    def evicted(self) -> Evicted:
        """What peers that evict leave of the prefix."""
        return Evicted(self.model, self.exact, self.settings.coded, self.instruction)

    def find_all(self) -> None:
        """Finds it now: what the model itself fails at is no failure of a way to store."""
        _ = self.prefill_s
        _ = self.exact
        _ = self.asked
        if self.settings.turns:
            _ = self.turns


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
        """A codec of ours, through frames, or why it refuses to code this text over its set; where
        it does so in turns or retrieval alone, why these are `missing`, by the section's name."""
        text.find_all()
        try:
            return self._of_way(text, way)
        except DictionaryMismatch as error:  # found while coding: a set of other weights
            return {"failed": error.message}

    def of_peer(self, text: JudgedText, peer: Peer, peers: Sequence[Peer], rope: Rope) -> Unit:
        """A published method, or why it cannot store this text; turns and retrieval too where
        methods were asked for by name, or why they are `missing`, as for `of_way`.

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
        if peer.coder.weighs:  # a pass of the model's own
            _ = text.importance
        exact, coded = text.exact, self._settings.coded

        def opened(weigh: Weigh) -> PeerShelf:
            return PeerShelf(peer.coder, rope, self._settings.page_tokens, weigh)

        try:
            shelf = opened(lambda *_: text.importance)
            made = through_shelf(exact, shelf, coded)
            unit: Unit = {"fidelity": judge(self._model, exact, made, shelf.size, coded)}
            encoded(peer.name, unit)  # refuses what is not finite
        except FAILURES as error:
            return {"failed": str(error)}
        if self._settings.peer:
            weigh = partial(importance_of, self._model)
            unit |= self._reloaded(text, peer.name, partial(opened, weigh), FAILURES)
        return unit

    def of_eviction(self, text: JudgedText, peer: Evicting) -> Unit:
        """A published method that evicts, or why it cannot score this text."""
        evicted = text.evicted
        try:
            unit: Unit = {"fidelity": evicted.judge(peer)}
            encoded(peer.name, unit)  # refuses what is not finite
        except EVICTION_FAILURES as error:
            return {"failed": str(error) or f"fails ({type(error).__name__})"}
        return unit

    def _of_way(self, text: JudgedText, way: Way) -> Unit:
        exact, settings = text.exact, self._settings
        if way.name not in self._warm:
            page = exact.ids[: settings.page_tokens]
            shelf = FrameShelf(way)
            shelf.store(page, exact.states)
            shelf.reload(page, exact.states.dtype, exact.states.device)
            self._warm.add(way.name)
        made, shelf = through_frames(exact, way, settings.coded)
        return {
            "fidelity": judge(self._model, exact, made, shelf.size, settings.coded),
            **self._reloaded(text, way.name, partial(FrameShelf, way), (DictionaryMismatch,)),
            "times": {
                "prefill_s": text.prefill_s,
                "encode_s": shelf.encode_s,
                "decode_s": shelf.decode_s,
            },
        }

    def _reloaded(
        self,
        text: JudgedText,
        name: str,
        open_shelf: OpenShelf,
        refusals: tuple[type[Exception], ...],
    ) -> Unit:
        """Turns and retrieval, and why one of them is `missing`: the other figures stay."""
        unit: Unit = {}
        missing: dict[str, str] = {}
        for section, measure in (("turns", self._turns), ("retrieval", self._retrieval)):
            try:
                found = measure(text, open_shelf)
                encoded(name, found)  # refuses what is not finite
                unit |= found
            except refusals as error:
                missing[section] = str(error)
        return unit | {"missing": missing} if missing else unit

    def _turns(self, text: JudgedText, open_shelf: OpenShelf) -> Unit:
        settings = self._settings
        if not settings.turns:
            return {"turns": []}
        return {"turns": converse(self._model, text.turns, open_shelf, settings)}

    def _retrieval(self, text: JudgedText, open_shelf: OpenShelf) -> Unit:
        asked = text.asked
        if asked is None:
            return {"retrieval": {}, "retrieval_exact": {}}
        answers = ask(self._model, asked, open_shelf, self._settings)
        return {"retrieval": answers, "retrieval_exact": asked.answers()}
