"""Whose keys and values a cache holds, looked at anew in every call: models change as they live."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from lexico_client.engines.hf._adapters import active_adapters, foreign
from lexico_client.engines.hf._marks import read_mark, write_mark
from lexico_client.engines.hf._plain_models import base_model, refuse_other_inputs
from lexico_client.engines.hf._weights import sample, weights_fingerprint
from lexico_codec.inputs import PageDigests, checked_inputs
from lexico_proto.errors import ConfigurationError, InvalidInput, LexicoError

_MARK: Final = "_lexico_identity"
"""Attribute of a cache that a load made, and of its layers; copies have it too."""
_SWITCHES: Final = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")
"""Attributes by which the layers of adapters are switched."""


@dataclass(frozen=True)
class _MadeFor:
    """What a cache that a load made is for."""

    identity: ModelIdentity
    weights: bytes
    lora: str
    tokens: int
    """Of the prompt."""
    inputs: tuple[bytes, ...]
    """What reached the model beside it, for each page."""
    page_tokens: int

    def __deepcopy__(self, memo: dict[int, Any]) -> _MadeFor:
        return self  # not the model along with a copy of a cache


class ModelIdentity:
    """The weights fingerprint of a model that may be written to, or have its adapter changed."""

    def __init__(
        self, model: nn.Module, weights: bytes | None, lora: str, *, digests: bool = False
    ) -> None:
        """
        Args:
            model: the model.
            weights: fingerprint in place of hashing; then the model must stay as it is.
            lora: identity of the adapter; empty for none.
            digests: what the model takes beside token ids is given as digests.

        Raises:
            Unsupported: the model takes more than token ids, and no digests are given.
            ConfigurationError: adapters that neither `weights` nor `lora` speaks of.
        """
        refuse_other_inputs(model, digests=digests)
        self._model = model
        self._given = weights
        self._lora = lora
        self._sample = None if weights is None else sample(model)
        names = active_adapters(model) if weights is not None and not lora else []
        if names:
            raise ConfigurationError(
                f"weights= does not say that the model has the adapters {', '.join(names)}: name "
                "them as lora=, or leave weights out, and they are hashed"
            )

    def weights(self) -> bytes:
        """The fingerprint of the model as it is now; milliseconds where nothing changed.

        Raises:
            ConfigurationError: the fingerprint was given, and the model is not the one it was.
            Unsupported: weights that have left the memory.
        """
        if self._given is None:
            return weights_fingerprint(self._model)
        if sample(self._model) != self._sample:
            raise ConfigurationError(
                "the model's weights or adapters changed, and weights= names the former ones: make "
                "a new HuggingFaceCache with another fingerprint, or without one"
            )
        return self._given

    def weights_of(self, module: nn.Module) -> bytes:
        """The fingerprint of a model that was given a cache: this one, or another.

        Raises:
            ConfigurationError, Unsupported: as `weights`.
        """
        same = module is base_model(self._model)
        return self.weights() if same else weights_fingerprint(module)

    def mark(
        self, cache: Any, weights: bytes, ids: Sequence[int], inputs: PageDigests, page_tokens: int
    ) -> None:
        """Writes on a cache whose keys and values it was made for, and of which prompt."""
        pages = len(ids) // page_tokens
        made_for = _MadeFor(
            self, weights, self._lora, len(ids), checked_inputs(inputs, pages), page_tokens
        )
        write_mark(cache, _MARK, made_for)

    def check(self, cache: Any, weights: bytes, ids: Sequence[int], inputs: PageDigests) -> None:
        """Raises where a cache says that it was made for another model, or other inputs. Its token
        ids are `check_offloaded`'s part.

        Raises:
            InvalidInput: a load made it for other weights, another adapter or other inputs than
                those that are said to be in it now.
        """
        made_for: _MadeFor | None = read_mark(cache, _MARK)
        if made_for is None:
            return
        if (made_for.weights, made_for.lora) != (weights, self._lora):
            raise InvalidInput(
                "this cache was loaded for other weights, or another adapter, than the model has "
                "now: prefill the prompt again before it is offloaded"
            )
        known = min(len(ids), made_for.tokens)
        pages = known // made_for.page_tokens
        if checked_inputs(inputs, pages) != checked_inputs(made_for.inputs, pages):
            raise InvalidInput(
                "this cache was loaded for other inputs beside its token ids than those given: "
                "give the digests that it was loaded with"
            )


def is_for(cache: Any, module: nn.Module) -> bool:
    """Whether a loaded cache, hit or miss, meets the weights and adapters that it was loaded for.

    Args:
        cache: that the model is given.
        module: the model, without wrappers.
    """
    try:
        check_model(cache, module)
    except LexicoError:
        return False
    return True


def quick_look(module: nn.Module) -> Callable[[], object]:
    """What tells within microseconds whether a model may be another one: how often its tensors were
    written to, and which adapters work. It holds for the modules and tensors that there are now.
    """
    modules = list(module.named_modules())
    tensors = [
        t for t in itertools.chain(module.parameters(), module.buffers()) if not t.is_inference()
    ]
    kept = [vars(each) for _, each in foreign(module, modules)]

    def look() -> object:
        writes = sum(tensor._version for tensor in tensors)
        return writes, [str([state.get(name) for name in _SWITCHES]) for state in kept]

    return look


def check_model(cache: Any, module: nn.Module) -> None:
    """Raises where a loaded cache meets other weights or adapters than it was loaded for: of
    another model, or of its own once they changed.

    Args:
        cache: that the model is given.
        module: the model, without wrappers.

    Raises:
        InvalidInput: it does.
        ConfigurationError, Unsupported: as `ModelIdentity.weights`.
    """
    made_for: _MadeFor | None = read_mark(cache, _MARK)
    if made_for is not None and made_for.identity.weights_of(module) != made_for.weights:
        raise InvalidInput(
            "the cache was loaded for other weights, or another adapter, than the model has now: "
            "load() the prompt again"
        )
