"""The network that makes keys and values, without what was wrapped around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lexico_client.engines.hf._adapters import (
    Modules,
    added_state,
    foreign,
    passive_base,
    passive_layer,
)
from lexico_client.engines.hf._plain_models import other_inputs, plain_model, plain_name
from lexico_client.engines.hf._sharded import local
from lexico_proto.errors import Unsupported


@dataclass(frozen=True)
class Network:
    """What keys and values are made by. Equal networks make equal ones of equal tokens."""

    model: nn.Module
    """The decoder where it is all that counts, else the model."""
    modules: Modules
    """All of its modules by name, adapters that do nothing left out."""
    added: list[Any]
    """What modules that are not the model's own keep beside tensors."""
    renamed: dict[str, str]
    """Names of adapter layers that do nothing → the name within of what they stand before."""

    @property
    def config(self) -> Any:
        """The config that it runs under; None for a model without."""
        return getattr(self.model, "config", None)

    @property
    def is_plain(self) -> bool:
        """Whether it is a model of transformers as it stands there, with nothing put into it."""
        return not self.added and type(self.model).__module__.startswith("transformers.models.")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and persistent buffer by name.

        Raises:
            Unsupported: one that is not in memory, or state that is no tensor.
        """
        for key, value in self.model.state_dict(keep_vars=True).items():
            name = _moved(key, self.renamed)
            if name is None:
                continue
            if not isinstance(value, Tensor) or value.is_meta:
                what = "is not in memory" if isinstance(value, Tensor) else "is no tensor"
                raise Unsupported(f"{name} {what}: give the fingerprint as `weights`, 32 bytes")
            yield plain_name(name), local(value).detach()


def network_of(model: nn.Module) -> Network:
    """The network below `torch.compile`, parallel wrappers, and adapters that do nothing."""
    model = plain_model(model)
    base = plain_model(passive_base(model))
    decoder = _decoder_of(base)
    renamed = _passive_layers(decoder)
    modules = [
        (moved, module)
        for name, module in decoder.named_modules()
        if (moved := _moved(name, renamed)) is not None
    ]
    return Network(decoder, modules, added_state(decoder, modules), renamed)


def _passive_layers(decoder: nn.Module) -> dict[str, str]:
    """Adapter layers that do nothing: their name, and the name within of what they stand before."""
    layers = ((name, passive_layer(module)) for name, module in decoder.named_modules())
    return {name: within for name, within in layers if within is not None}


def _moved(name: str, renamed: dict[str, str]) -> str | None:
    """The name without adapter layers that do nothing; None for what belongs to them alone."""
    steps = name.split(".")
    for end in range(1, len(steps) + 1):
        within = renamed.get(".".join(steps[:end]))
        if within is not None:
            behind = steps[end:]
            return ".".join(steps[:end] + behind[1:]) if behind[:1] == [within] else None
    return name


def _decoder_of(model: nn.Module) -> nn.Module:
    """The decoder, where all that stands beside it is a head that makes logits of its output.

    Models of transformers alone: in code of someone's own, `forward` may do anything else.
    """
    if not type(model).__module__.startswith("transformers.models.") or not isinstance(
        model, PreTrainedModel
    ):
        return model
    whole: Any = model
    decoder = plain_model(whole.get_decoder())
    if decoder is model or not isinstance(decoder, PreTrainedModel) or other_inputs(model):
        return model
    head: Any = whole.get_output_embeddings()
    heads = {id(tensor) for tensor in (head.parameters() if head is not None else ())}
    inside = {id(tensor) for tensor in decoder.parameters()}
    beside = {id(tensor) for tensor in model.parameters()} - inside - heads
    within = {id(module) for module in decoder.modules()}
    outside = [each for each in model.named_modules() if id(each[1]) not in within]
    return model if beside or foreign(model, outside) else decoder
