"""Names that tensors of files have in a model: transformers renames some while it loads them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

_log = logging.getLogger(__name__)


def load_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """For tensors of files, the names that they are loaded under, by the mapping that transformers
    declares for the model's class and type.

    Left out is what is not loaded as it lies there, but fused, split, transposed or permuted.

    Args:
        model: a model of transformers.
        names: of the files' tensors.

    Returns:
        File's name → name in the model. Nothing where the mapping cannot be had: it is none of
        transformers' promised interfaces.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        mapping: list[Any] = get_model_conversion_mapping(model)
        renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
        converters: list[Any] = [each for each in mapping if not isinstance(each, WeightRenaming)]
        found = {}
        # In the order of a load: some renamings wait for a name that comes before others.
        for name in sorted(names, key=dot_natural_key):
            loaded, converted = rename_source_key(name, renamings, converters)
            if converted is None:
                found[name] = loaded
        return found
    except Exception as error:  # noqa: BLE001 - whatever another release does: nothing is proven
        _log.debug("no renamings of %s: %s", type(model).__name__, error)
        return {}
