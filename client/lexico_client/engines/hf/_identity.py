"""Whose keys and values a cache holds, looked at anew in every call: models change as they live."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from lexico_client.engines.hf._adapters import active_adapters
from lexico_client.engines.hf._plain_models import refuse_other_inputs
from lexico_client.engines.hf._weights import sample, weights_fingerprint
from lexico_proto.errors import ConfigurationError, InvalidInput

_MARK: Final = "_lexico_identity"
"""Attribute of a cache that a load made; copies of the cache have it too."""


class ModelIdentity:
    """The weights fingerprint of a model that may be written to, or have its adapter changed."""

    def __init__(self, model: nn.Module, weights: bytes | None, lora: str) -> None:
        """
        Args:
            model: the model.
            weights: fingerprint in place of hashing; then the model must stay as it is.
            lora: identity of the adapter; empty for none.

        Raises:
            Unsupported: the model takes more than token ids.
            ConfigurationError: adapters that neither `weights` nor `lora` speaks of.
        """
        refuse_other_inputs(model)
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

    def mark(self, cache: Any, weights: bytes) -> None:
        """Writes on a cache whose keys and values it was made for."""
        setattr(cache, _MARK, (weights, self._lora))

    def check(self, cache: Any, weights: bytes) -> None:
        """Raises where a cache says that it was made for another model.

        Raises:
            InvalidInput: a load made it for other weights or another adapter.
        """
        made_for = getattr(cache, _MARK, None)
        if made_for is not None and made_for != (weights, self._lora):
            raise InvalidInput(
                "this cache was loaded for other weights, or another adapter, than the model has "
                "now: prefill the prompt again before it is offloaded"
            )
