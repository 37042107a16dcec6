"""Published methods that evict: they leave a prefix shorter, its layers of unlike lengths.

They are `published.eviction`'s, and score tokens through kvpress, which is no dependency of the
project. No pages come back, so that reloads, retrieval and the error of what came back are not
measured of them: predictions and bytes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from torch import Tensor

from lexico_codec.codecs.codec import SINK_TOKENS
from lexico_codec.geometry import Geometry
from lexico_lab.evaluation.fidelity import Quality, compare, through_frames
from lexico_lab.evaluation.peers import FAILURES, Evicting, Published
from lexico_lab.evaluation.prefixes import ExactText, tokenize
from lexico_lab.evaluation.settings import EvalSettings
from lexico_lab.evaluation.ways import NamedSet, Way, choose_ways
from lexico_lab.models import LoadedModel
from lexico_lab.published import scores, short_caches
from lexico_lab.published.eviction import Eviction, select
from lexico_proto.errors import ConfigurationError, LexicoError

EVICTION_FAILURES: Final = (
    *FAILURES,
    AssertionError,  # how kvpress checks what it is given
    AttributeError,  # a model whose modules are not as kvpress expects them
    ImportError,  # what kvpress imports late
    TypeError,  # transformers of another version
    KeyError,  # the same, in keyword arguments
)
"""What kvpress says of a model or a text that it cannot score."""

_CODED: Final = 'lexico:{"sparsity":8}'
"""What codes kept tokens, `eviction.CODER`, as `--codec` takes it."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """What runs, and what cannot."""

    peers: tuple[Published, ...]
    """As they were given, without the evictions that cannot run."""
    left_out: tuple[tuple[str, str], ...]
    """(methods, reason)."""
    instruction: tuple[int, ...]
    """Tokens that ask to repeat a text."""


def choose_evictions(
    settings: EvalSettings,
    loaded: LoadedModel,
    geometry: Geometry,
    weights: bytes,
    sets: Sequence[NamedSet],
    peers: Sequence[Published],
) -> Chosen:
    """Leaves out evictions that cannot run.

    Args:
        settings: the run.
        loaded: the model.
        geometry: of its cache.
        weights: digest of the model.
        sets: of the run.
        peers: every published method, see `peers.load_peers`.

    Raises:
        ConfigurationError: one was asked for by a name that nothing else goes by, and cannot run.
    """
    if not any(isinstance(peer, Evicting) for peer in peers):
        return Chosen(tuple(peers), (), ())
    instruction = tuple(tokenize(loaded.tokenizer, scores.INSTRUCTION))
    refusal = scores.refusal(loaded.model)
    through, no_set = _codec_of_kept(settings, geometry, weights, sets)
    repeated = 2 * settings.prefix + len(instruction)
    most = getattr(loaded.model.config, "max_position_embeddings", None) or repeated
    running: list[Published] = []
    left_out: dict[str, list[Evicting]] = {}
    for peer in peers:
        if not isinstance(peer, Evicting):
            running.append(peer)
            continue
        reason = refusal
        if not reason and peer.eviction.method == "kvzip" and repeated > most:
            reason = f"repeats the prefix: {repeated} tokens, the model takes {most}"
        if not reason and peer.eviction.coded and through is None:
            reason = no_set
        if reason:
            left_out.setdefault(reason, []).append(peer)
        else:
            running.append(replace(peer, through=through) if peer.eviction.coded else peer)
    for name in settings.peer:
        if any(peer.goes_by(name) for peer in running):
            continue
        for reason, some in left_out.items():
            if any(peer.goes_by(name) for peer in some):
                raise ConfigurationError(f"peer {name}: {reason}")
    return Chosen(
        tuple(running),
        tuple((_methods(some), reason) for reason, some in left_out.items()),
        instruction,
    )


class Evicted:
    """What evictions leave of one text's prefix. What several of them need is found once."""

    def __init__(
        self, model: Any, exact: ExactText, coded: int, instruction: Sequence[int]
    ) -> None:
        """
        Args:
            model: the model.
            exact: the text.
            coded: leading tokens of the prefix that would be stored.
            instruction: tokens that ask to repeat the prefix.
        """
        self._model, self._exact = model, exact
        self._stored, self._instruction = slice(SINK_TOKENS, coded), instruction
        self._scores: dict[str, Tensor] = {}
        self._coded: dict[str, Tensor] = {}

    def judge(self, peer: Evicting) -> Quality:
        """Compares predictions after what is kept with those after the whole.

        Raises:
            EVICTION_FAILURES: kvpress cannot score this, or the codec refuses its set.
        """
        exact = self._exact
        states = exact.states if peer.through is None else self._through(peer.through)
        kept = self.kept(peer.eviction)
        short = short_caches.shorten(states, kept, self._stored, peer.eviction.coded)
        first = exact.states.shape[3]
        logits = short_caches.continued(self._model, short, exact.following, first)
        return compare(exact, logits.float().log_softmax(-1), short.size)

    def score(self, chosen: Sequence[Eviction]) -> None:
        """Finds the scores that these need, in as few passes of the model as it takes.

        Raises:
            EVICTION_FAILURES: kvpress cannot score this.
        """
        missing = [one for one in chosen if scores.score_key(one) not in self._scores]
        if missing:
            exact = self._exact
            self._scores |= scores.scores_of(
                self._model,
                exact.ids[: exact.states.shape[3]],
                exact.states,
                missing,
                self._stored,
                self._instruction,
            )

    def kept(self, eviction: Eviction) -> Tensor:
        """`[layers, kv_heads, tokens that may go]` bool: what each head keeps.

        Raises:
            EVICTION_FAILURES: kvpress cannot score this.
        """
        self.score([eviction])
        scored = self._scores[scores.score_key(eviction)]
        return select(scored, eviction.method, eviction.count(self._stored))

    def _through(self, way: Way) -> Tensor:
        """The prefix's states as they come back from a codec of ours."""
        if way.name not in self._coded:
            self._coded[way.name], _ = through_frames(self._exact, way, self._stored.stop)
        return self._coded[way.name]


def _methods(some: Sequence[Evicting]) -> str:
    return ", ".join(dict.fromkeys(peer.method for peer in some))


def _codec_of_kept(
    settings: EvalSettings, geometry: Geometry, weights: bytes, sets: Sequence[NamedSet]
) -> tuple[Way | None, str]:
    """The codec that codes kept tokens, over the first set that serves it, or why there is none."""
    try:
        asked = replace(settings, codecs=(_CODED,))
        _, first, *_ = choose_ways(asked, geometry, weights, sets).ways  # the control comes first
    except LexicoError as error:
        return None, error.message
    return first, ""
