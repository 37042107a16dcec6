"""The learned transform: inverted, refused where it is malformed; levels; sets of format 3."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from lexico_codec.codecs import LexicoCodec, PackedCodec, Place, ResidualCodec
from lexico_codec.geometry import Geometry
from lexico_codec.kernels.entropy.levels import (
    ESCAPE_BITS,
    RATE_WEIGHT,
    choose_levels,
)
from lexico_codec.kernels.entropy.tables import MIDDLE, SYMBOLS, TOTAL, Tables
from lexico_codec.limits import MAX_TRANSFORM_ATOMS, MAX_TRANSFORM_SPARSITY
from lexico_codec.sets.dictionary import DictionarySet, TransformSet
from lexico_codec.sets.transform import (
    CLASSES_AN_OCTAVE,
    ENERGIES,
    GAINS,
    LEAST_OCTAVE,
    QUALITIES,
    classes_of,
    features,
)
from lexico_codec.spec import CacheSpec, Shard
from lexico_lab.training.counts import Counts
from lexico_proto.errors import ConfigurationError, InvalidInput, LexicoError, ShapeMismatch
from tests.support.dictionaries import random_set, set_info
from tests.support.residual_sets import (
    products,
    residual_set,
    residual_tensors,
    set_of,
    transform_of,
)

SHAPES = [
    pytest.param(shape, id="L{}-H{}-D{}-runs{}-blocks{}-joint{}".format(*shape))
    for shape in [
        (1, 1, 7, 1, 1, 3),
        (2, 3, 16, 1, 1, 24),
        (4, 2, 9, 2, 2, 0),
        (6, 5, 4, 3, 5, 1),
        (2, 3, 16, 1, 3, 10**6),
    ]
]
TENSORS = residual_tensors(2, 3, 8, runs=2, joint=6, width=12, atoms=20, sparsity=2)
MOST_ADDED, LEAST_ADDED = GAINS[-1] + 2 * ENERGIES[-1], GAINS[0] + 2 * ENERGIES[0]
COUNT = 2 * 3 * 8
"""Components of a run."""


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    with products(quick=False):
        yield


# Analysis and synthesis


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [1, 33])
def test_synthesis_is_the_inverse_of_analysis(shape: tuple[int, ...], tokens: int) -> None:
    layers, heads, dim, runs, blocks, joint = shape
    transform = transform_of(residual_set(layers, heads, dim, runs, blocks, joint))
    assert (transform.layers, transform.runs, transform.run_layers) == (
        layers,
        runs,
        layers // runs,
    )
    generator = torch.Generator().manual_seed(1)
    size = 2 * layers // runs
    for run in range(runs):
        x = 3 * torch.randn(size, heads * dim, tokens, generator=generator)
        components = transform.analyse(run, x)
        assert components.shape == (size * heads * dim, tokens)
        torch.testing.assert_close(
            transform.synthesise(run, components).mT, x, atol=3e-5, rtol=3e-5
        )
        made = transform.synthesise(run, x.view(-1, tokens)).mT.contiguous()
        again = transform.analyse(run, made)
        torch.testing.assert_close(again, x.view(-1, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_missing_components_are_zeros(shape: tuple[int, ...]) -> None:
    layers, heads, dim, runs, blocks, joint = shape
    transform = transform_of(residual_set(layers, heads, dim, runs, blocks, joint))
    count = transform.order.shape[1]
    components = torch.randn(count, 5, generator=torch.Generator().manual_seed(2))
    for run in range(runs):
        for kept in {0, 1, 2, count // 3, count // 2, count - 1, count}:
            padded = components.clone()
            padded[kept:] = 0
            few = transform.synthesise(run, components[:kept].contiguous())
            torch.testing.assert_close(few, transform.synthesise(run, padded), atol=1e-5, rtol=1e-5)
    nothing = transform.synthesise(runs - 1, components[:0])
    means = transform.means[-2 * layers // runs :].flatten(1)[:, None]
    torch.testing.assert_close(nothing, means.expand_as(nothing))


def test_quick_products_round_to_bfloat16() -> None:
    """No component errs by more than a rounding of its token's length."""
    x = 3 * torch.randn(4, 48, 50, generator=torch.Generator().manual_seed(1))
    x[0, 0] *= 1000
    exact = transform_of(residual_set(2, 3, 16))
    components = exact.analyse(0, x)
    made = exact.synthesise(0, components)
    with products(quick=True):
        rough = transform_of(residual_set(2, 3, 16))
        assert rough is not exact
        off = (rough.analyse(0, x) - components).abs()
        assert bool((off <= 2**-8 * components.norm(dim=0)).all())
        again = rough.synthesise(0, components)
    assert (again.dtype, again.shape) == (torch.float32, made.shape)
    assert float((again - made).norm() / made.norm()) < 2**-8


def test_input_is_left_alone() -> None:
    transform = transform_of(residual_set(2, 3, 16))
    x = torch.randn(4, 48, 9)
    before = x.clone()
    components = transform.analyse(0, x)
    kept = components.clone()
    transform.synthesise(0, components)
    assert torch.equal(x, before)
    assert torch.equal(components, kept)


def test_deviations_of_the_test_sets_are_right() -> None:
    """What every other test with these sets rests on."""
    transform = transform_of(residual_set(2, 3, 16))
    sizes = torch.tensor([4.0, 1.0, 4.0, 1.0])[:, None, None]
    x = sizes * torch.randn(4, 48, 4000, generator=torch.Generator().manual_seed(0))
    x += transform.means.view(4, 48, 1)
    measured = transform.analyse(0, x).square().mean(1).sqrt()
    torch.testing.assert_close(measured, transform.deviations[0], rtol=0.06, atol=0)


# Gains and classes


def test_features() -> None:
    components = torch.randn(600, 7, generator=torch.Generator().manual_seed(0))
    components[3, 0] = 1e6
    deviations = torch.linspace(2, 0.5, 600)
    found = features(components, deviations, 5)
    assert found.shape == (13, 7)
    unit = components / deviations[:, None]
    assert float(found[3, 0]) == 6.0
    torch.testing.assert_close(found[:5, 1:], unit[:5, 1:].clamp(-6, 6))
    ends = [0, 8, 32, 128, 512, 600]
    for band, (a, b) in enumerate(pairwise(ends)):
        expected = unit[a:b].double().square().mean(0).clamp(max=1e8).log().float()
        torch.testing.assert_close(found[5 + band], expected)
    assert bool((found[10:] == 0).all()), "bands without components"
    assert bool(features(torch.zeros(9, 2), torch.ones(9), 3).isfinite().all())


def test_gains_are_whole_and_in_range() -> None:
    tensors = residual_tensors(2, 3, 16)
    tensors["residual.gains"][:, 0] = 4  # of the first component
    tensors["residual.gains"][:, -9:] = 0
    transform = transform_of(set_of(tensors))
    components = 4 * torch.randn(192, 500, generator=torch.Generator().manual_seed(0))
    gains = transform.gains_of(0, components)
    assert gains.dtype == torch.int8
    assert (int(gains.min()), int(gains.max())) == (GAINS[0], GAINS[-1])
    assert len(set(gains.tolist())) == len(GAINS)
    weights = transform.gains[0].double()
    eta = features(components, transform.deviations[0], 8).double()
    thirds = 3 * (weights[:-1] @ eta + weights[-1]) / (2 * math.log(2))
    assert float((gains - thirds.clamp(GAINS[0], GAINS[-1])).abs().max()) <= 0.501


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38, 0.0])
def test_gains_of_what_overflowed(value: float) -> None:
    transform = transform_of(residual_set(2, 3, 16))
    gains = transform.gains_of(0, torch.full((192, 3), value))
    assert bool(((gains >= GAINS[0]) & (gains <= GAINS[-1])).all())


def test_classes_are_thirds_of_octaves() -> None:
    step = 0.3
    deviations = step * torch.exp2(torch.arange(-30, 40) / CLASSES_AN_OCTAVE)
    found = classes_of(deviations, step, 46)
    wanted = torch.arange(-30, 40) - LEAST_OCTAVE * CLASSES_AN_OCTAVE
    assert found.dtype == torch.int16
    assert found.tolist() == wanted.clamp(-MOST_ADDED - 1, 46 - 1 - LEAST_ADDED).tolist()
    for extreme in (1e-300, 1e-45, 1e38, 1e300):
        some = classes_of(torch.tensor([1e-45, 1.0, 3e38]), extreme, 46).tolist()
        assert all(-14 <= one <= 61 for one in some)
        assert some == sorted(some)


def test_the_last_classes_reach_every_table_and_none() -> None:
    """With any gain and energies: what is below the first class is not coded, what is above the
    last one is.
    """
    least, most = classes_of(torch.tensor([1e-30, 1e30]), 1.0, 46).tolist()
    assert least + MOST_ADDED == -1
    assert most + LEAST_ADDED == 45


def test_classes_of_coefficients_come_first() -> None:
    transform = transform_of(set_of(TENSORS))
    found = transform.classes(1, 0.5)
    assert found.shape == (2 + COUNT,)
    assert found[:2].tolist() == classes_of(transform.coefficients[1] / 4, 0.5, 46).tolist()
    assert found[2:14].tolist() == classes_of(transform.remaining[1], 0.5, 46).tolist()
    assert found[14:].tolist() == classes_of(transform.deviations[1, 12:], 0.5, 46).tolist()
    assert torch.equal(transform.classes(1, 0.5), found)
    own = transform.steps["balanced"]
    assert transform.classes(1, own) is transform.classes(1, own), "made once"
    assert not torch.equal(transform.classes(1, 1.0), found)


# Levels


def random_tables(seed: int, classes: int = 6) -> Tables:
    """Frequencies some of which are zero, points off the whole numbers, the last with raw bits."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(classes, SYMBOLS, generator=generator).pow(3)
    counts = (shares / shares.sum(1, keepdim=True) * 3800).int()
    counts[:, -1] += 1
    counts[:, MIDDLE] += TOTAL - counts.sum(1)
    points = torch.arange(16.0) - 0.3 * torch.rand(classes, 16, generator=generator)
    points[:, 0] = 0
    shifts = torch.zeros(classes, dtype=torch.uint8)
    shifts[-1] = 2
    return Tables(counts.int(), shifts, points)


def brute_force(value: float, at: int, tables: Tables, weight: float) -> dict[int, float]:
    """Prices of the levels that are looked at, nearest first."""
    counted = tables.frequencies[at].double() / TOTAL
    size, nearest = abs(value), round(abs(value))
    prices = {}
    escape = -math.log2(counted[-1]) + ESCAPE_BITS
    for level in dict.fromkeys((nearest, max(nearest - 1, 0), 0)):
        bits, point = escape, float(level)
        if level <= MIDDLE:
            both = [float(counted[MIDDLE + sign * level]) for sign in (1, -1)]
            of = [min(-math.log2(f), escape) if f else min(40, escape) for f in both]
            bits, point = sum(of) / 2, float(tables.points[at, level])
        prices[level] = (size - point) ** 2 + weight * bits
    return prices


@pytest.mark.parametrize("weight", [RATE_WEIGHT, 0.0, 1.0])
def test_levels_are_the_cheapest(weight: float) -> None:
    tables = random_tables(0)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(40, 30, generator=generator) * torch.logspace(-1, 1.5, 40)[:, None]
    classes = torch.randint(-3, 7, (40,), generator=generator).to(torch.int16)
    offsets = torch.randint(-2, 3, (30,), generator=generator).to(torch.int8)
    found = choose_levels(values, classes, offsets, tables, weight)
    assert found.dtype == torch.int32
    met = set()
    for c in range(40):
        for t in range(30):
            at, value = min(int(classes[c] + offsets[t]), 5), float(values[c, t])
            level = int(found[c, t])
            if at < 0:
                assert level == 0
            elif at == 5:
                assert level == round(value)
            else:
                prices = brute_force(value, at, tables, weight)
                assert abs(level) in prices
                assert level == 0 or (level < 0) == (value < 0)
                assert prices[abs(level)] <= min(prices.values()) + 1e-4
                met.add(round(abs(value)) - abs(level))
    assert met >= {0, 1} or not weight, "levels that save bits were never met"


def test_levels_keep_to_the_coder() -> None:
    values = torch.tensor([[0.0, -0.0, 0.49, -0.51, 2.0**29, -(2.0**29), 15.4, 16.0]])
    for classes in (0, 45):
        found = choose_levels(
            values,
            torch.tensor([classes], dtype=torch.int16),
            torch.zeros(8, dtype=torch.int8),
            Counts().tables(),
        )
        assert found[0, :2].tolist() == [0, 0]
        assert found[0, 4:6].tolist() == [2**29, -(2**29)]


# What is refused


def damaged(**changes: Tensor | None) -> bytes:
    """An artefact with some tensors changed, or left out."""
    tensors = {**TENSORS, **{f"residual.{name}": tensor for name, tensor in changes.items()}}
    metadata = metadata_of(set_of(TENSORS))
    return save({k: v.contiguous() for k, v in tensors.items() if v is not None}, metadata)


def metadata_of(dictionary: DictionarySet) -> dict[str, str]:
    import json

    data = dictionary.to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, str] = header["__metadata__"]
    return found


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
    **{f"{name} missing": lambda name=name: {name: None} for name in NAMES},
    **{f"{name} of one axis more": lambda name=name: {name: of(name)[None]} for name in NAMES},
    **{f"{name} in double": lambda name=name: {name: of(name).double()} for name in NAMES},
    **{
        f"{name} NaN": lambda name=name: {name: torch.full_like(of(name), float("nan"))}
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


# Sets of format 3


def test_set_of_a_transform(tmp_path: Path) -> None:
    made = set_of(TENSORS)
    made.save(tmp_path / "set.safetensors")
    read = DictionarySet.load(tmp_path / "set.safetensors")
    assert (read.digest, read.to_bytes(), read.info) == (made.digest, made.to_bytes(), made.info)
    assert set_of(residual_tensors(2, 3, 8, runs=2, joint=6, seed=1)).digest != made.digest
    assert (read.layers, read.head_dim, read.info.sparsity) == (2, 8, 2)
    assert b'\\"format\\":3' in read.to_bytes()
    assert [read.serves(c) for c in ("lexico-residual", "lexico", "lexico-packed", "raw")] == [
        True,
        False,
        False,
        False,
    ]
    assert isinstance(read, TransformSet)
    transform = read.transform
    assert transform.steps == dict(zip(QUALITIES, (0.0625, 0.25, 1.0), strict=True))
    torch.testing.assert_close(transform.atoms.norm(dim=2), torch.ones(2, 20))
    assert load(read.to_bytes()).keys() == TENSORS.keys()


def test_sets_of_other_kinds_do_not_serve() -> None:
    assert not random_set(2, 16).serves("lexico-residual")
    assert random_set(2, 16).serves("lexico")


def test_other_codecs_name_what_is_wrong() -> None:
    group = torch.zeros(2, 2, 5, 3, 8)
    for codec in (LexicoCodec(sparsity=1), PackedCodec(sparsity=1)):
        with pytest.raises(LexicoError, match=r"transform|train --codec"):
            codec.encode(group, Place(0, 9), set_of(TENSORS))


def test_formats_do_not_mix() -> None:
    plain, metadata = load(random_set(2, 8).to_bytes()), metadata_of(random_set(2, 8))
    with pytest.raises(InvalidInput, match="stands alone"):
        DictionarySet.load(save({**plain, **TENSORS}, metadata_of(set_of(TENSORS))))
    for version in (1, 2, 3):
        text = metadata["lexico"].replace('"format":1', f'"format":{version}')
        with pytest.raises(InvalidInput, match="dictionary set"):
            DictionarySet.load(save({**plain, **TENSORS}, {"lexico": text}))
        with pytest.raises(InvalidInput, match="dictionary set"):
            DictionarySet.load(save(TENSORS if version < 3 else plain, {"lexico": text}))
    for layers in (1, 3):
        text = metadata_of(set_of(TENSORS))["lexico"].replace('"layers":2', f'"layers":{layers}')
        with pytest.raises(InvalidInput, match="dictionary set"):
            DictionarySet.load(save(TENSORS, {"lexico": text}))


def test_held_out_and_sparsity_of_a_transform() -> None:
    info = replace(set_info(3), sparsity=0)
    tensors = {name.removeprefix("residual."): tensor for name, tensor in TENSORS.items()}
    assert TransformSet.build(tensors, info).info.sparsity == 0
    for wrong in (-1, 256):
        with pytest.raises(InvalidInput, match="sparsity"):
            TransformSet.build(tensors, replace(info, sparsity=wrong))
    with pytest.raises(InvalidInput):
        TransformSet.build({}, info)


# Specs


def spec_of(codec: ResidualCodec, layers: int = 6, **options: int) -> CacheSpec:
    return CacheSpec(bytes(32), Geometry(layers, 3, 8), codec, bytes(32), **options)  # type: ignore[arg-type]


def test_a_group_is_a_run() -> None:
    assert spec_of(ResidualCodec()).group_layers == 6
    assert spec_of(ResidualCodec(run_layers=2)).group_layers == 2
    spec = spec_of(ResidualCodec(run_layers=2), group_layers=2)
    assert [spec.group_range(g) for g in range(spec.groups)] == [
        range(0, 2),
        range(2, 4),
        range(4, 6),
    ]
    for codec, layers in ((ResidualCodec(), 2), (ResidualCodec(run_layers=2), 6)):
        with pytest.raises(ShapeMismatch, match="leave it out"):
            spec_of(codec, group_layers=layers)
    for run_layers in (4, 5, 12):
        with pytest.raises(ConfigurationError, match="6 layers are no runs"):
            spec_of(ResidualCodec(run_layers=run_layers))
    with pytest.raises(ShapeMismatch, match="frames a page"):
        spec_of(ResidualCodec(run_layers=1), layers=65)


def test_steps_and_runs_are_part_of_the_namespace() -> None:
    codecs = [
        ResidualCodec(),
        ResidualCodec("near"),
        ResidualCodec(step=0.25),
        ResidualCodec(step=0.5),
        ResidualCodec(run_layers=6),
        ResidualCodec(run_layers=3),
    ]
    assert len({spec_of(codec).namespace for codec in codecs}) == len(codecs)


def test_a_pipeline_shard_finds_its_run() -> None:
    from lexico_codec.pages import decode_group, encode_group

    tensors = residual_tensors(6, 3, 8, runs=3)
    dictionary = set_of(tensors)
    shard = Shard(2, 6, 0, 3)
    spec = CacheSpec(
        bytes(32),
        Geometry(4, 3, 8, "float32"),
        ResidualCodec("near", run_layers=2),
        dictionary.digest,
        page_tokens=7,
        shard=shard,
    )
    group = torch.randn(*spec.group_shape(1), generator=torch.Generator().manual_seed(0))
    frame = encode_group(spec, bytes(32), 3, 1, group, dictionary)
    out = torch.full_like(group, float("nan"))
    decode_group(spec, bytes(32), 3, 1, frame, out, dictionary)
    assert float((out - group).norm() / group.norm()) < 0.1
    direct = ResidualCodec("near").encode(group, Place(4, 21), dictionary)
    assert bytes(frame).endswith(direct)
