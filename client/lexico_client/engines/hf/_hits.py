"""What a load brought, and how it goes into a model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from lexico_client._results import Loaded
from lexico_client.engines.hf._coded_cache import CodedCache
from lexico_client.engines.hf._held_tokens import HeldTokens, note_tokens, tokens_of
from lexico_client.engines.hf._marks import write_mark
from lexico_client.engines.hf._prefix import roomy_cache
from lexico_codec.hf_inputs import cache_inputs
from lexico_proto.errors import LexicoError, Unsupported

C = TypeVar("C", bound=Cache)


class Lending(Generic[C]):
    """Gives a cache to one use, and another cache of the same prefix to each later one."""

    def __init__(
        self, model: PreTrainedModel, cache: C, tokens: int, again: Callable[[C], C]
    ) -> None:
        """
        Args:
            model: that the caches are for.
            cache: goes to the first use.
            tokens: that it holds before that.
            again: makes one of the same prefix, whatever became of the first.
        """
        self._model = model
        self._cache = cache
        self._tokens = tokens
        self._again = again
        self._lent = threading.Lock()

    def inputs(self) -> dict[str, Any]:
        """A cache under the keyword that the model knows."""
        first = self._lent.acquire(blocking=False) and self._untouched()
        return cache_inputs(self._model, self._cache if first else self._again(self._cache))

    def _untouched(self) -> bool:
        """Whether nobody has used the first cache by hand."""
        held, keys = tokens_of(self._cache), getattr(self._cache.layers[0], "keys", None)
        rows = 1 if keys is None else keys.shape[0]
        return (
            held is not None
            and not held.used
            and rows == 1
            and self._cache.get_seq_length() == self._tokens
        )


@dataclass(frozen=True)
class _Brought:
    tokens: int
    """Leading tokens that the cache holds; 0 for a miss."""
    loaded: Loaded
    """The figures of the load."""

    @property
    def reason(self) -> LexicoError | None:
        """What made it less than the service had said it holds."""
        return self.loaded.reason


@dataclass(frozen=True)
class Hit(_Brought):
    """What a load brought.

    The model looks at what it is given together with the cache: a prompt that does not begin with
    the cache's tokens is refused, several sequences share the prefix, and of a prompt that is as
    long as the prefix, or shorter, the last token is computed.
    """

    cache: DynamicCache
    """The reloaded prefix, or empty for a miss; it grows with what the model is given."""
    _lending: Lending[DynamicCache] = field(repr=False, compare=False)

    @property
    def inputs(self) -> dict[str, Any]:
        """A cache under the keyword that the model knows: `**hit.inputs` goes to `generate`, or to
        the model itself with `input_ids[:, hit.tokens:]`. It is `cache` from transformers 5.24 on,
        and was `past_key_values`.

        The first time it is `hit.cache`, if nothing was done with that; each later time it is
        another one of the loaded prefix, without a copy of its memory. So one hit serves any number
        of questions, also at a time.

        Raises:
            Unsupported: the prefix is no longer in `hit.cache`: it was moved elsewhere.
        """
        return self._lending.inputs()


@dataclass(frozen=True)
class CodedHit(_Brought):
    """What a load of codes brought. It is looked at as a `Hit` is."""

    cache: CodedCache
    """The reloaded prefix as codes, or empty for a miss: ready for one `generate`."""
    _lending: Lending[CodedCache] = field(repr=False, compare=False)

    @property
    def inputs(self) -> dict[str, Any]:
        """As of `Hit`, but once: codes change as the cache grows.

        Raises:
            Unsupported: the second time.
        """
        return self._lending.inputs()


def hit_of(
    model: PreTrainedModel,
    prompt: Tensor,
    tokens: int,
    loaded: Loaded,
    cache: DynamicCache,
    *,
    told: bool,
) -> Hit:
    """The hit whose cache holds the first tokens of a prompt, `[n]`; as told as `HeldTokens` is.

    Every cache of it bears what the first one bears beside its layers.
    """
    note_tokens(cache, HeldTokens(prompt, tokens, told=told))
    marks = {name: value for name, value in vars(cache).items() if name.startswith("_lexico")}

    def again(first: DynamicCache) -> DynamicCache:
        made = roomy_cache(model.config)
        for name, mark in marks.items():
            write_mark(made, name, mark)
        note_tokens(made, HeldTokens(prompt, _share(first, made, tokens), told=told))
        return made

    return Hit(tokens, loaded, cache, Lending(model, cache, tokens, again))


def coded_hit_of(
    model: PreTrainedModel,
    prompt: Tensor,
    tokens: int,
    loaded: Loaded,
    cache: CodedCache,
    *,
    told: bool,
) -> CodedHit:
    """As `hit_of`, for a cache of codes."""
    note_tokens(cache, HeldTokens(prompt, tokens, told=told))

    def again(first: CodedCache) -> CodedCache:
        raise Unsupported(
            "a hit of codes goes into a model once: take copy.deepcopy(hit.cache) before that for "
            "each further use, or call load_codes() again"
        )

    return CodedHit(tokens, loaded, cache, Lending(model, cache, tokens, again))


def _share(first: DynamicCache, made: DynamicCache, tokens: int) -> int:
    """Puts the leading tokens of a cache into an empty one, as views: layers never write again to
    what they hold.

    Returns:
        How many: fewer than `tokens` where the first was cropped.
    """
    if tokens == 0:
        return 0
    held = [(layer.keys, layer.values) for layer in first.layers if isinstance(layer, DynamicLayer)]
    kept = min([tokens, *(keys.shape[-2] for keys, _ in held if isinstance(keys, Tensor))])
    known = tokens_of(first)  # looked at after the layers: it is told of a crop before they grow
    kept = min(kept, known.intact) if known is not None else 0
    for layer, (keys, values) in zip(made.layers, held, strict=True):
        if not isinstance(layer, DynamicLayer) or keys is None or values is None:
            raise Unsupported("the prefix is no longer in hit.cache: load it again")
        if kept:
            keys, values = keys[:1, :, :kept], values[:1, :, :kept]
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
    return kept
