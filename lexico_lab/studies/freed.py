"""Eviction before lexico-residual: what is evicted is not left out but set free.

lexico-residual codes all heads of all layers of a token together, so leaving a head's vector out
saves nothing. Its encoder may put anything in the vector's place, and puts there what takes the
fewest bits beside the vectors that stay: of the components c, in steps, the least sum of
c² / (d² + 0.3), d being a component's deviation in steps, found by conjugate gradients from the
vectors as they were. Frames and decoder are those of any cache. No mask is stored, as nothing is
hidden: what comes back in an evicted vector's place serves better than its absence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lexico_codec.codecs import ResidualCodec
from lexico_codec.geometry import Rope
from lexico_codec.rope import rotate, unrotate
from lexico_codec.sets.choose import at_hand
from lexico_codec.sets.dictionary import TransformSet
from lexico_codec.sets.transform import CLASSES_AN_OCTAVE, Transform, _inverse
from lexico_lab.evaluation.ways import Way
from lexico_lab.published.eviction import Eviction

SHARES: Final = {"snapkv": 0.9, "pyramidkv": 0.9, "compactor": 0.9, "kvzip": 0.5}
"""Of the vectors, kept. Where the first three kept 0.75, bytes at equal KL were more (2 texts)."""
ROUNDS: Final = 6
_FLOOR: Final = 0.3
"""Of a component's mean square, in squared steps: what varies less is rarely coded."""


@dataclass(frozen=True)
class Freed:
    """An eviction, then a codec of ours that fills what is evicted as suits it."""

    eviction: Eviction
    through: Way
    """Codec lexico-residual."""

    @property
    def curve(self) -> str:
        """Settings of one method make one curve."""
        return f"{self.eviction.method} + {self.through.method}"

    @property
    def name(self) -> str:
        """Method and setting."""
        return f"{self.eviction.name} + {self.through.name}"

    def states(self, states: Tensor, kept: Tensor, stored: slice) -> Tensor:
        """The states that are coded; arguments and errors as of `freed`."""
        codec, rope = self.through.spec.codec, self.through.spec.geometry.rope
        if not isinstance(codec, ResidualCodec) or rope is None:
            raise ValueError(f"{self.through.name}: codec lexico-residual and RoPE are needed")
        transform = at_hand(codec, self.through.dictionary, TransformSet).transform
        step = transform.steps[codec.quality] if codec.step is None else codec.step
        return freed(states, kept, stored, transform, step, rope)


def evictions(through: Iterable[Way]) -> list[Freed]:
    """Every eviction that is worth it before these codecs."""
    codecs = list(through)
    return [Freed(Eviction(method, SHARES[method]), one) for method in SHARES for one in codecs]


def freed(
    states: Tensor, kept: Tensor, stored: slice, transform: Transform, step: float, rope: Rope
) -> Tensor:
    """States with cheaper vectors where `kept` is False.

    Args:
        states: `[layers, 2, kv_heads, tokens, head_dim]` of the prefix, exact; left as they are.
        kept: `[layers, kv_heads, tokens of stored]` bool.
        stored: the tokens that are coded.
        transform: of one run of layers.
        step: of the codec, in the units of the transform.
        rope: of the model.
    """
    positions = torch.arange(stored.start, stored.stop)
    sides = []
    for layer in states:
        keys, values = layer[:, :, stored].half().float()  # [kv_heads, tokens, dim]
        before = unrotate(keys.transpose(0, 1).contiguous(), positions, rope)
        sides += [before.permute(1, 2, 0), values.transpose(1, 2)]  # [kv_heads, dim, tokens]
    exact = torch.stack(sides)
    free = ~kept.repeat_interleave(2, dim=0)[:, :, None].expand_as(exact)
    made = _cheapest(exact.flatten(1, 2), free.flatten(1, 2), transform, step).view_as(exact)
    found = states.clone()
    for index, layer in enumerate(found):
        turned = rotate(made[2 * index].permute(2, 0, 1).contiguous(), positions, rope)
        layer[0, :, stored] = turned.transpose(0, 1)
        layer[1, :, stored] = made[2 * index + 1].transpose(1, 2)
    return found


def _cheapest(exact: Tensor, free: Tensor, transform: Transform, step: float) -> Tensor:
    """`exact`, `[2 layers, kv_heads * dim, tokens]`, but where it is free."""
    components = transform.analyse(0, exact)
    gains = transform.gains_of(0, components).float()
    finer = torch.exp2(gains / CLASSES_AN_OCTAVE).square() / step**2
    deviations = transform.deviations[0][:, None].square() * finer
    weights = finer / (deviations + _FLOOR)
    made = exact.clone()
    left = -_adjoint(transform, weights * components) * free
    towards, energy = left.clone(), left.square().sum((0, 1))
    zero = transform.analyse(0, torch.zeros_like(exact))  # of the means
    for _ in range(ROUNDS):
        moved = transform.analyse(0, towards) - zero
        back = _adjoint(transform, weights * moved) * free
        length = energy / (towards * back).sum((0, 1)).clamp_min(1e-30)
        made += length * towards
        left -= length * back
        former, energy = energy, left.square().sum((0, 1))
        towards = left + energy / former.clamp_min(1e-30) * towards
    return made


def _adjoint(transform: Transform, components: Tensor) -> Tensor:
    """Of `Transform.analyse` without its means: `[2 layers, D, tokens]` from `[C, tokens]`."""
    z = torch.empty_like(components)
    z[transform.order[0]] = components
    selected = transform.selected[0]
    z[selected] = transform.cross[0] @ z[selected]  # orthogonal to its rounding
    tables, blocks, d = transform.bases.shape[:3]
    turned = _inverse(transform.bases).mT @ z.view(tables, blocks, d, -1)
    return turned.reshape(tables, blocks * d, -1)
