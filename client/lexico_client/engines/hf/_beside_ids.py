"""What a forward pass is given beside token ids, and whether it changes keys and values.

Pages are of token ids at the positions 0, 1, 2 and so on, each of which sees all before it.
Padding, a mask with holes, positions of one's own and token types make other keys and values of
equal ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

Flag: TypeAlias = Tensor | bool
"""Yes or no; a tensor of one element where the answer lies on a device, and nobody waits for it."""

_SAYS_NOTHING: Final = frozenset(
    (
        "input_ids",
        "inputs_embeds",  # then there are no ids, which is noted
        "cache",
        "past_key_values",
        "use_cache",
        "logits_to_keep",
        "num_logits_to_keep",
        "labels",
        "shift_labels",
        "num_items_in_batch",
        "return_dict",
    )
)
"""Arguments that keys and values do not depend on, or that are looked at elsewhere. So are those
that begin with output_."""
_POSITIONS: Final = ("position_ids", "cache_position")
_KINDS: Final = ("mm_token_type_ids", "moe_mm_token_type_ids")
"""Which tokens stand for a picture or sound: 0 for those of text."""
_HIDDEN: Final = -1e4
"""What is added to a score so that nothing is left of it, or less."""


def others(inputs: Mapping[str, Any]) -> list[str]:
    """Names of what may change keys and values, and is neither mask nor positions.

    Args:
        inputs: of a forward pass, by name.
    """
    known = _SAYS_NOTHING.union(_POSITIONS, _KINDS, ("attention_mask",))
    return [
        name
        for name, value in inputs.items()
        if value is not None and name not in known and not name.startswith("output_")
    ]


def plain(inputs: Mapping[str, Any], tokens: int, length: int, *, told: bool) -> Flag:
    """Whether keys and values come from the token ids alone. Waits for no device.

    Args:
        inputs: of a forward pass, by name.
        tokens: that it adds to its cache.
        length: tokens that the cache holds before.
        told: what else the model is given stands in the page keys, and places of pictures with it.
    """
    if not told and others(inputs):
        return False
    flags: list[Flag] = [sees_all(inputs.get("attention_mask"), tokens, length)]
    for name in _POSITIONS:
        positions = inputs.get(name)
        if not (told and isinstance(positions, Tensor) and positions.ndim > 2):
            flags.append(follow(positions, tokens, length))
    if not told:
        flags += _of_text(inputs)
    return _all(flags)


def cast_to(dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    """What `torch.autocast` has a model compute keys and values in, here and now, where that is not
    the type that it has.

    Args:
        dtype: of the model.
        device: of the model.
    """
    if not torch.is_autocast_enabled(device.type):
        return None
    cast = torch.get_autocast_dtype(device.type)
    return None if cast == dtype else cast


def sees_all(mask: Any, tokens: int, length: int) -> Flag:
    """Whether a mask lets each token see all before it.

    Args:
        mask: `[rows, length + tokens]`, 0 for what is hidden; or `[rows, heads, tokens, columns]`,
            booleans or what is added to scores; None for no mask.
        tokens, length: as for `plain`.
    """
    if mask is None:
        return True
    if not isinstance(mask, Tensor) or mask.shape[-1] < length + tokens:
        return False  # what lies behind a mask that is too short is hidden
    if mask.ndim == 2:
        return mask.all()
    if mask.ndim != 4 or mask.shape[-2] != tokens:
        return False
    shown = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril(length)
    if mask.dtype == torch.bool:
        return (mask == shown).all()
    if not mask.is_floating_point():
        return False
    return torch.where(shown, mask == 0, mask <= _HIDDEN).all()


def follow(positions: Any, tokens: int, length: int) -> Flag:
    """Whether positions are those after a cache; None leaves them to the model.

    Args:
        positions: `[..., n]`, of which the last are those of the tokens.
        tokens, length: as for `plain`.
    """
    if positions is None:
        return True
    if not isinstance(positions, Tensor) or positions.ndim == 0 or positions.shape[-1] < tokens:
        return False
    expected = torch.arange(length, length + tokens, device=positions.device)
    return (positions[..., positions.shape[-1] - tokens :] == expected).all()


def _of_text(inputs: Mapping[str, Any]) -> Iterator[Flag]:
    for name in _KINDS:
        kinds = inputs.get(name)
        if kinds is not None:
            yield isinstance(kinds, Tensor) and ~kinds.any()


def _all(flags: list[Flag]) -> Flag:
    found = [flag for flag in flags if flag is not True]
    if not found:
        return True
    if any(flag is False for flag in found):
        return False
    whole = found[0]
    for flag in found[1:]:
        whole = whole & flag.to(whole.device)  # type: ignore[union-attr]
    return whole
