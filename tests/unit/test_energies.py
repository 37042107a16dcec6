"""Energies of tokens and bands: measured, stored, added to classes; the header that holds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexico_codec.codecs.residual.energies import (
    band_ends,
    band_of,
    bands_stored,
    measure,
    significant,
    spread,
)
from lexico_codec.codecs.residual.header import Header, bands_of, header_bytes
from lexico_codec.sets.transform import CLASSES_AN_OCTAVE, ENERGIES, GAINS
from lexico_proto.errors import DamagedFrame
from tests.support.residual_sets import residual_set, residual_tensors, set_of, transform_of

FALLING = torch.exp2(-torch.arange(400) / 40)


def drawn(tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(FALLING), tokens, generator=generator) * FALLING[:, None]


@given(components=st.integers(1, 70_000))
def test_bands_cover_all_components_once(components: int) -> None:
    ends = band_ends(components)
    begins = (0, *ends[:-1])
    assert ends[-1] == components
    assert all(end > begin for begin, end in zip(begins, ends, strict=True))
    widths = [end - begin for begin, end in zip(begins, ends, strict=True)]
    wanted = [max(16, begin // 8) for begin in begins]
    assert widths[:-1] == wanted[:-1]
    assert widths[-1] <= wanted[-1]
    of = band_of(components)
    assert torch.equal(torch.bincount(of), torch.tensor(widths))
    assert bool((of.diff() >= 0).all())


@pytest.mark.parametrize("step", [1e-9, 0.05, 1.0, 7.9, 8.0, 8.1, 1e9])
def test_bands_are_stored_as_far_as_components_are_significant(step: float) -> None:
    counted = significant(FALLING, step)
    assert counted == sum(8 * float(d) >= step for d in FALLING)
    begins = (0, *band_ends(len(FALLING))[:-1])
    assert bands_stored(FALLING, step) == sum(begin < counted for begin in begins)


def test_what_the_set_expects_has_no_energy() -> None:
    found = measure(drawn(64), FALLING, 0.1)
    of_tokens, of_bands = found.tokens, found.bands
    assert float(found.ratios.max()) < 1.3
    assert float(found.ratios.min()) > 0.7
    assert of_tokens.dtype == of_bands.dtype == torch.int8
    assert int(of_tokens.abs().max()) <= 1
    assert int(of_bands.abs().max()) <= 1


def test_strong_tokens_and_bands_are_found() -> None:
    x = drawn(64)
    x[:, 5] *= 2
    x[:, 6] /= 2
    first = band_of(len(FALLING)) == 3
    x[first] *= 2 ** (2 / CLASSES_AN_OCTAVE)
    found = measure(x, FALLING, 0.01)
    of_tokens, of_bands = found.tokens, found.bands
    assert of_tokens[5] - of_tokens[7] in (2, 3, 4)
    assert of_tokens[6] - of_tokens[7] in (-4, -3, -2)
    assert of_bands[3] - of_bands[5] in (1, 2, 3)


@pytest.mark.parametrize("value", [0.0, 1e38, float("inf"), float("nan")])
def test_energies_stay_in_range(value: float) -> None:
    x = drawn(7)
    x[3] = value
    x[:, 2] = value
    found = measure(x, FALLING, 0.1)
    for energies in (found.tokens, found.bands):
        assert bool(((energies >= ENERGIES[0]) & (energies <= ENERGIES[-1])).all())


def test_a_coarse_step_hears_nothing() -> None:
    found = measure(drawn(9), FALLING, 100.0)
    assert found.tokens.tolist() == [0] * 9
    assert len(found.bands) == bands_stored(FALLING, 100.0) == 0
    assert found.ratios.tolist() == [1] * 9


def test_bands_that_are_not_stored_have_none() -> None:
    found = spread(torch.tensor([1, -2], dtype=torch.int8), 100)
    of = band_of(100)
    assert found.tolist() == [(1, -2)[int(band)] if band < 2 else 0 for band in of]


# The header


def header_of(tokens: int, bands: int, seed: int, atoms: int, s: int) -> Header:
    rng = np.random.default_rng(seed)

    def drawn_from(values: range, count: int) -> Tensor:
        return torch.from_numpy(rng.integers(values[0], values[-1] + 1, count).astype(np.int8))

    indices = torch.from_numpy(rng.integers(0, max(1, atoms), (tokens, s)))
    exact = torch.from_numpy(rng.integers(0, 2, tokens).astype(bool))
    energies = drawn_from(ENERGIES, tokens), drawn_from(ENERGIES, bands)
    return Header(exact, drawn_from(GAINS, tokens), *energies, indices)


@settings(deadline=None, max_examples=50)
@given(
    tokens=st.integers(1, 130),
    sparsity=st.integers(0, 2),
    step=st.sampled_from([0.01, 0.5, 4.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_a_head_comes_back(tokens: int, sparsity: int, step: float, seed: int) -> None:
    transform = transform_of(residual_set(2, 3, 16, sparsity=sparsity))
    bands = bands_of(transform, 0, step)
    header = header_of(tokens, bands, seed, transform.atoms.shape[1], sparsity)
    body = header.pack(transform)
    assert len(body) == header_bytes(transform, bands, tokens)
    made = Header.unpack(memoryview(body + b"rows"), transform, bands, tokens)
    for name in ("exact", "gains", "energies", "bands", "indices"):
        assert torch.equal(getattr(made, name), getattr(header, name))
    assert torch.equal(made.offsets, header.gains + header.energies)
    plain = transform.classes(0, step)
    classes = made.classes(transform, 0, step)
    assert torch.equal(classes[:sparsity], plain[:sparsity])
    of_bands = spread(header.bands, len(plain) - sparsity)
    assert torch.equal(classes[sparsity:], plain[sparsity:] + of_bands)


def test_damaged_heads_are_refused() -> None:
    transform = transform_of(set_of(residual_tensors(2, 3, 16, atoms=33)))
    header = header_of(5, 2, 0, 33, 1)
    body = bytearray(header.pack(transform))
    assert 5 * (1 + 4 + 3 + 6) + 2 * 3 == 76
    body[-1] |= 0x80
    with pytest.raises(DamagedFrame, match="behind the last index"):
        Header.unpack(memoryview(body), transform, 2, 5)
    body = bytearray(len(body))
    body[-1] = 0x0F  # the last index is 60 or more
    with pytest.raises(DamagedFrame, match="outside the atoms"):
        Header.unpack(memoryview(body), transform, 2, 5)
