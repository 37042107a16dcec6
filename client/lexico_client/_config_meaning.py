"""What of a model's config keys and values depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_KEEPS_MEANING: Final = frozenset(
    (
        "architectures",
        "chunk_size_feed_forward",
        "dtype",  # each tensor brings its own, and the geometry the cache's
        "finetuning_task",
        "id2label",
        "initializer_range",
        "label2id",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "output_scores",
        "problem_type",
        "return_dict",
        "router_aux_loss_coef",
        "task_specific_params",
        "tie_word_embeddings",  # the head comes after all keys and values
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_cache",
    )
)
"""Config entries that keys and values do not depend on, at any depth. Those that begin with _, hold
_token_id or speak of dropout too."""


def meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config that keys and values depend on, those of configs within too."""
    return {
        name: meaning(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in _KEEPS_MEANING
        and not name.startswith("_")
        and "_token_id" not in name
        and not is_dropout(name)
    }


def is_dropout(name: str) -> bool:
    """Whether an entry is a probability of dropout, which matters in training alone."""
    return "dropout" in name or name.endswith(("_pdrop", "layerdrop"))
