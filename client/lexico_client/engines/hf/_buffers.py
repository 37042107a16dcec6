"""Buffers that are made from the config, and are not in files: rotary frequencies, masks, tables.

They are the same wherever the config is, but for the last bit of the machine's powers. So they are
no part of the identity unless they are not what the config makes, as after a rewrite in place.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import xxhash
from torch import Tensor, nn

from lexico_client.engines.hf._adapters import Modules
from lexico_client.engines.hf._plain_models import plain_name
from lexico_codec.tensors import bytes_of

_TOLERANCE: Final = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 2e-3}
_COARSE: Final = 1e-2
"""Relative, for bfloat16 and what is narrower."""


def made_buffers(modules: Modules) -> list[list[Any]]:
    """What must be said of buffers that no file holds, as plain JSON values.

    For one of a dtype below float32, its name and dtype: `model.to(torch.bfloat16)` rounds rotary
    frequencies, `from_pretrained` does not. For one that is not what its module makes of the
    config, its content too.
    """
    fresh: dict[tuple[type, int], nn.Module | None] = {}
    entries: list[list[Any]] = []
    for name, module in modules:
        names = [key for key in module._non_persistent_buffers_set if key in module._buffers]
        if not names:
            continue
        kind = type(module), id(getattr(module, "config", None))
        if kind not in fresh:
            fresh[kind] = _made_anew(module)
        made = fresh[kind]
        for key in sorted(names):
            entries += _entry(plain_name(f"{name}.{key}"), module._buffers[key], made, key)
    return entries


def _entry(name: str, buffer: Tensor | None, made: nn.Module | None, key: str) -> list[list[Any]]:
    if buffer is None or buffer.is_meta:
        return []
    expected = None if made is None else made._buffers.get(key)
    if expected is None or not _agree(buffer, expected):
        return [[name, str(buffer.dtype), xxhash.xxh3_128_hexdigest(bytes_of(buffer))]]
    rounded = buffer.is_floating_point() and buffer.dtype != torch.float32
    return [[name, str(buffer.dtype)]] if rounded else []


def _agree(buffer: Tensor, expected: Tensor) -> bool:
    if buffer.shape != expected.shape:
        return False
    ours, theirs = buffer.detach().cpu(), expected.to(buffer.dtype)
    if not buffer.is_floating_point():
        return torch.equal(ours, theirs)
    tolerance = _TOLERANCE.get(buffer.dtype, _COARSE)
    return torch.allclose(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance * 1e-3)


def _made_anew(module: nn.Module) -> nn.Module | None:
    """A module of the same kind and config; None where it cannot be made by these alone."""
    config = getattr(module, "config", None)
    if config is None:
        return None
    layer = getattr(module, "layer_idx", None)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        for arguments in ((config,), (config, layer)):
            try:
                return type(module)(*arguments)
            except Exception:  # noqa: BLE001 - whatever a constructor raises: it takes others
                continue
    return None
