"""Transforms that are malformed, and damaged bytes of a set, are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from lexico_codec.codecs import Place, ResidualCodec
from lexico_codec.limits import MAX_TRANSFORM_ATOMS, MAX_TRANSFORM_SPARSITY
from lexico_codec.sets.dictionary import DictionarySet
from lexico_proto.errors import InvalidInput, LexicoError
from tests.support.residual_sets import (
    set_of,
)
from tests.support.transform_sets import COUNT, TENSORS, metadata_of
from tests.support.transform_sets import exact_products as exact_products

# What is refused


def damaged(**changes: Tensor | None) -> bytes:
    """An artefact with some tensors changed, or left out."""
    tensors = {**TENSORS, **{f"residual.{name}": tensor for name, tensor in changes.items()}}
    metadata = metadata_of(set_of(TENSORS))
    return save({k: v.contiguous() for k, v in tensors.items() if v is not None}, metadata)


def test_the_set_that_the_damaged_ones_are_made_of_is_sound() -> None:
    assert DictionarySet.load(damaged()).digest == set_of(TENSORS).digest


def of(name: str) -> Tensor:
    return TENSORS[f"residual.{name}"].clone()


def with_number(name: str, number: float, *at: int) -> Tensor:
    tensor = of(name)
    tensor[at] = number
    return tensor


def swapped(name: str) -> Tensor:
    return of(name).flip(1)


def repeated(name: str) -> Tensor:
    tensor = of(name)
    tensor[:, 1] = tensor[:, 0]
    return tensor


NAMES = sorted(name.removeprefix("residual.") for name in TENSORS)


def changed(name: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor | None]:
    return {name: change(of(name))}


MALFORMED: dict[str, Callable[[], dict[str, Tensor | None]]] = {
    "order twice": lambda: {"order": repeated("order")},
    "order out of range": lambda: {"order": with_number("order", COUNT, 0, 0)},
    "order negative": lambda: {"order": with_number("order", -1, 1, 0)},
    "order of one run": lambda: {"order": of("order")[:1]},
    "order of no run": lambda: {"order": of("order")[:0]},
    "order too short": lambda: {"order": of("order")[:, 1:]},
    "order of too many runs": lambda: {"order": of("order").repeat(2, 1)},
    "selected falling": lambda: {"selected": swapped("selected")},
    "selected twice": lambda: {"selected": repeated("selected")},
    "selected out of range": lambda: {"selected": with_number("selected", COUNT, 0, -1)},
    "selected negative": lambda: {"selected": with_number("selected", -1, 0, 0)},
    "selected fewer": lambda: {"selected": of("selected")[:, 1:]},
    "cross scales fewer": lambda: {"cross_scales": of("cross_scales")[:, 1:]},
    "cross not square": lambda: {"cross": of("cross")[:, 1:]},
    "deviations rising": lambda: {"deviations": swapped("deviations")},
    "deviations zero": lambda: {"deviations": with_number("deviations", 0, 0, -1)},
    "deviations fewer": lambda: {"deviations": of("deviations")[:, 1:]},
    "gains without a bias": lambda: {"gains": torch.zeros(2, 8)},
    "gains of too many features": lambda: {"gains": torch.zeros(2, COUNT + 10)},
    "atoms without direction": lambda: {"atoms": with_number("atoms", 0, 0, 3)},
    "atoms too many": lambda: {
        "atoms": torch.ones(2, MAX_TRANSFORM_ATOMS + 1, 12, dtype=torch.int8)
    },
    "atoms too wide": lambda: {
        "atoms": torch.ones(2, 20, COUNT + 1, dtype=torch.int8),
        "remaining": torch.ones(2, COUNT + 1),
    },
    "atoms fewer than coefficients": lambda: {"atoms": of("atoms")[:, :1]},
    "atoms narrower than coefficients": lambda: {
        "atoms": of("atoms")[:, :, :1].clamp(min=1),
        "remaining": of("remaining")[:, :1],
    },
    "no atoms for coefficients": lambda: {"atoms": of("atoms")[:, :0]},
    "remaining of another width": lambda: {"remaining": of("remaining")[:, 1:]},
    "remaining zero": lambda: {"remaining": with_number("remaining", 0, 0, 0)},
    "coefficients zero": lambda: {"coefficients": with_number("coefficients", 0, 0, 0)},
    "coefficients too many": lambda: {"coefficients": torch.ones(2, MAX_TRANSFORM_SPARSITY + 1)},
    "frequencies not 4096": lambda: {"frequencies": with_number("frequencies", 0, 5, 15)},
    "frequencies negative": lambda: {
        "frequencies": torch.tensor([-1, 4096, *[0] * 29, 1]).int().repeat(46, 1)
    },
    "frequencies without an escape": lambda: {
        "frequencies": torch.tensor([4096, *[0] * 31]).int().repeat(46, 1)
    },
    "frequencies that wrap": lambda: {
        "frequencies": torch.tensor([2**31 - 1, 2**31 - 1, *[0] * 29, 4098]).int().repeat(46, 1)
    },
    "frequencies of fewer classes": lambda: {"frequencies": of("frequencies")[1:]},
    "no classes": lambda: {
        "frequencies": of("frequencies")[:0],
        "shifts": of("shifts")[:0],
        "points": of("points")[:0],
    },
    "too many classes": lambda: {"shifts": torch.zeros(1025, dtype=torch.int32)},
    "shifts over 12": lambda: {"shifts": with_number("shifts", 13, 0)},
    "shifts that wrap": lambda: {"shifts": with_number("shifts", 256, 0)},
    "shifts negative": lambda: {"shifts": with_number("shifts", -1, 0)},
    "points of fewer symbols": lambda: {"points": of("points")[:, 1:]},
    "steps zero": lambda: {"steps": with_number("steps", 0, 1)},
    "steps negative": lambda: {"steps": with_number("steps", -1, 1)},
    "steps of two qualities": lambda: {"steps": of("steps")[:2]},
    "scales zero": lambda: {"scales": with_number("scales", 0, 1)},
    "scales fewer": lambda: {"scales": of("scales")[1:]},
    "means of other heads": lambda: {"means": of("means")[:, 1:]},
    "means of other layers": lambda: {"means": of("means")[1:]},
    "means of head_dim 0": lambda: {"means": of("means")[:, :, :0]},
    "means of head_dim 513": lambda: {"means": torch.zeros(4, 3, 513)},
    "bases not square": lambda: {"bases": of("bases")[..., 1:]},
    "bases of fewer blocks": lambda: {"bases": of("bases")[..., :12, :12]},
    "bases of nothing": lambda: {"bases": of("bases")[:, :0]},
    "bases infinite": lambda: {"bases": with_number("bases", float("inf"), 0, 0, 0, 0)},
    **{f"{name} missing": partial(dict, [(name, None)]) for name in NAMES},
    **{f"{name} of one axis more": partial(changed, name, lambda t: t[None]) for name in NAMES},
    **{f"{name} in double": partial(changed, name, Tensor.double) for name in NAMES},
    **{
        f"{name} NaN": partial(changed, name, lambda t: torch.full_like(t, float("nan")))
        for name in NAMES
        if TENSORS[f"residual.{name}"].is_floating_point()
    },
    "more than there is": lambda: {"more": torch.zeros(1)},
    "a name with dots": lambda: {"means.more": torch.zeros(1)},
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_transforms_are_refused(what: str) -> None:
    with pytest.raises(InvalidInput):
        DictionarySet.load(damaged(**MALFORMED[what]()))


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_bytes_never_crash(data: st.DataObject) -> None:
    spoilt = bytearray(set_of(TENSORS).to_bytes())
    start = int.from_bytes(spoilt[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, start + 7) | st.integers(start + 8, len(spoilt) - 1))
        spoilt[at] = data.draw(st.integers(0, 255))
    group = torch.randn(1, 2, 6, 3, 8)
    out = torch.full_like(group, float("nan"))
    try:
        read = DictionarySet.load(bytes(spoilt[: data.draw(st.integers(0, 2 * len(spoilt)))]))
        codec = ResidualCodec(run_layers=1)
        body = codec.encode(group, Place(0, 99), read)
        codec.decode(memoryview(body), Place(0, 99), read, out)
    except LexicoError:
        return
    assert bool(out.isfinite().all())
