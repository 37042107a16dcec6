"""Which token ids, and at which positions, a model was given with the cache of a batch."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from transformers import StaticCache

_ATTRIBUTE: Final = "_lexico_fed"


class FedTokens:
    """Notes each forward pass, without waiting for a device. What it has not seen is not known.

    Only keys and values that were computed of the very ids, at the very positions, may be offloaded
    under those ids.
    """

    def __init__(self, ids: Tensor, pads: tuple[int, ...], given: int) -> None:
        """
        Args:
            ids: `[rows, columns]` that the cache holds.
            pads: columns of padding before each row.
            given: columns of the prompts that `generate` is given.
        """
        self._given = given
        self._begun = False
        self._pads = torch.tensor(pads)[:, None]
        positions = torch.arange(ids.shape[1])[None] - self._pads
        self._chunks = [(ids, positions)]
        self._count = ids.shape[1]
        self._lost = False

    def rest(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What a forward pass is to be given: assisted generation feeds the whole prompt, however
        much of it the cache holds.

        Args:
            inputs: of the forward pass, by name.
        """
        ids, held = inputs.get("input_ids"), self._count
        first, self._begun = not self._begun, True
        if not (first and held and isinstance(ids, Tensor) and ids.shape[1] >= self._given):
            return inputs
        changed = {"input_ids": ids[:, held:]}
        positions = inputs.get("position_ids")
        if isinstance(positions, Tensor):
            changed["position_ids"] = positions[..., -changed["input_ids"].shape[1] :]
        return inputs | changed

    def grow(self, length: int | None, ids: Any, positions: Any) -> None:
        """Notes a forward pass.

        Args:
            length: columns that the cache holds before it; None for as many as were noted.
            ids: `[rows, n]`; anything else is not known.
            positions: `[rows or 1, n]`, or None for those that follow the columns before.
        """
        rows = len(self._pads)
        known = isinstance(ids, Tensor) and ids.ndim == 2 and ids.shape[0] == rows
        length = self._count if length is None else length
        if positions is None and known:
            # Columns are positions where nothing is padded, and elsewhere they agree with none.
            positions = torch.arange(length, length + ids.shape[1])[None]
        placed = isinstance(positions, Tensor) and positions.ndim == 2
        if self._lost or not known or not placed or length > self._count:
            self._lost = True
            return
        if positions.shape[0] not in (1, rows) or positions.shape[1] < ids.shape[1]:
            self._lost = True
            return
        if length < self._count:
            held, at = self._joined()
            self._chunks = [(held[:, :length], at[:, :length])]
        self._chunks.append((ids.detach(), positions.detach()[:, -ids.shape[1] :]))
        self._count = length + ids.shape[1]

    def agreeing(self, row: int, ids: list[int]) -> int:
        """How many leading tokens of a sequence its row was made of.

        Args:
            row: of the batch.
            ids: of the sequence, without the padding before it.
        """
        fed, positions = self._joined()
        pad = int(self._pads[row])
        count = min(len(ids), max(0, fed.shape[1] - pad))
        same = (fed[row, pad : pad + count] == torch.tensor(ids[:count], dtype=torch.int64)) & (
            positions[row, pad : pad + count] == torch.arange(count)
        )
        return int(same.to(torch.int64).cumprod(0).sum())

    def _joined(self) -> tuple[Tensor, Tensor]:
        rows = len(self._pads)
        ids = torch.cat([part.to("cpu", torch.int64) for part, _ in self._chunks], 1)
        positions = [at.to("cpu", torch.int64).expand(rows, -1) for _, at in self._chunks]
        joined = (ids, torch.cat(positions, 1))
        self._chunks = [joined]
        return joined


def note_fed(cache: Any, fed: FedTokens | None) -> None:
    """Has what a cache grows by noted from now on, or no longer."""
    setattr(cache, _ATTRIBUTE, fed)


def grow_fed(cache: Any, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Notes a forward pass of a model, before it.

    Args:
        cache: that it is given.
        inputs: all that it is given, by name.

    Returns:
        What it is to be given instead; None for a cache that is not noted.
    """
    fed = getattr(cache, _ATTRIBUTE, None)
    if not isinstance(fed, FedTokens):
        return None
    inputs = fed.rest(inputs)
    # The length of a static cache lies on its device; it is never cropped here.
    length = None if isinstance(cache, StaticCache) else int(cache.get_seq_length())
    fed.grow(length, inputs.get("input_ids"), inputs.get("position_ids"))
    return inputs
