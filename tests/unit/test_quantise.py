"""FP8 E4M3 under a power of two a row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexico_codec.kernels.pursuit.quantise import LEAST_EXPONENT, from_e4m3, to_e4m3
from lexico_proto.errors import NonFiniteCache

FLOAT32_MAX = torch.finfo(torch.float32).max
NORMAL_RANGE = 2.0**-6 / 224
"""Least magnitude, of a row's largest, that E4M3 holds with all three bits of its mantissa."""


def round_trip(coefficients: Tensor) -> Tensor:
    codes, exponents = to_e4m3(coefficients)
    assert codes.dtype == torch.uint8
    assert exponents.dtype == torch.int8
    assert codes.shape == coefficients.shape
    assert exponents.shape == coefficients.shape[:1]
    return from_e4m3(codes, exponents)


def random_rows(rows: int, s: int, seed: int) -> Tensor:
    """Coefficients whose magnitudes span a dozen powers of two in each row."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, s, generator=generator)
    return torch.ldexp(values, torch.randint(-12, 1, (rows, s), generator=generator))


@pytest.mark.parametrize("magnitude", [1e-30, 1e-20, 1e-4, 1.0, 358.0, 500.0, 1e6, 1e30, 1e38])
def test_no_magnitude_saturates_or_vanishes(magnitude: float) -> None:
    coefficients = magnitude * torch.tensor([[1.0, -0.5, 0.01], [-2.0, 1.5, 0.3]])
    torch.testing.assert_close(round_trip(coefficients), coefficients, rtol=2**-4, atol=0.0)


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_what_is_no_number_is_refused(number: float) -> None:
    """It would be stored as a small number, or as NaN, by the version of torch."""
    with pytest.raises(NonFiniteCache, match="coefficients"):
        to_e4m3(torch.tensor([[1.0, 2.0], [number, 0.5]]))


@pytest.mark.parametrize("seed", range(5))
def test_error_is_half_a_step_of_the_mantissa(seed: int) -> None:
    coefficients = random_rows(500, 13, seed)
    error = (round_trip(coefficients) - coefficients).abs()
    largest = coefficients.abs().amax(1, keepdim=True)
    within = coefficients.abs() >= NORMAL_RANGE * largest
    assert bool((error[within] <= 2**-4 * coefficients.abs()[within]).all())
    # Below, the steps are those of E4M3's subnormals.
    assert bool((error <= torch.maximum(2**-4 * coefficients.abs(), 2**-10 / 224 * largest)).all())


@settings(deadline=None)
@given(st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=12))
def test_each_code_is_what_torch_rounds_to(row: list[float]) -> None:
    coefficients = torch.tensor([row], dtype=torch.float32)
    codes, exponents = to_e4m3(coefficients)
    scaled = coefficients.double() * 2.0 ** int(exponents)  # exact
    expected = scaled.float().to(torch.float8_e4m3fn)
    assert torch.equal(codes, expected.view(torch.uint8))
    largest = float(scaled.abs().max())
    # The row's largest lies in the top octave of the range, if not subnormal itself.
    assert largest == 0 or 224 < largest <= 448 or int(exponents) == 127
    back = from_e4m3(codes, exponents)
    torch.testing.assert_close(back.double(), expected.double() * 2.0 ** -int(exponents))


def test_every_e4m3_number_comes_back() -> None:
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    codes = codes[(codes & 0x7F) != 0x7F][None]  # all but the two NaN
    values = codes.view(torch.float8_e4m3fn).float()
    assert torch.equal(from_e4m3(codes, torch.zeros(1, dtype=torch.int8)), values)
    again, exponent = to_e4m3(values)
    assert int(exponent) == 0
    assert torch.equal(again, codes)


def test_ties_round_to_even() -> None:
    coefficients = torch.tensor([[448.0, 17.0, 19.0, 21.0, -17.0, -19.0]])  # steps of 2 here
    assert round_trip(coefficients).tolist() == [[448.0, 16.0, 20.0, 20.0, -16.0, -20.0]]


def test_row_that_is_zero() -> None:
    coefficients = torch.zeros(3, 4)
    coefficients[1, 2] = 5.0
    codes, exponents = to_e4m3(coefficients)
    assert exponents[0] == exponents[2] == 0
    assert torch.equal(from_e4m3(codes, exponents), coefficients)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_quantise(shape: tuple[int, int]) -> None:
    assert round_trip(torch.zeros(shape)).shape == shape


def test_rows_do_not_touch_each_other() -> None:
    coefficients = torch.cat([random_rows(20, 6, 7), 1e20 * random_rows(20, 6, 8)])
    together = round_trip(coefficients)
    alone = torch.cat([round_trip(row[None]) for row in coefficients])
    assert torch.equal(together, alone)


def test_largest_float32_stays_finite() -> None:
    coefficients = torch.tensor([[FLOAT32_MAX, 1e37], [-3.35e38, 0.0], [3.25e38, -3.25e38]])
    codes, exponents = to_e4m3(coefficients)
    assert int(exponents.min()) == LEAST_EXPONENT
    back = from_e4m3(codes, exponents)
    assert bool(back.isfinite().all())
    torch.testing.assert_close(back, coefficients, rtol=2**-4, atol=0.0)


def test_subnormal_rows_keep_their_size() -> None:
    """The power of two ends at 2^127: below 1e-37 precision goes, but nothing explodes."""
    coefficients = torch.tensor([[1e-38, -5e-39], [1e-40, 0.0], [1e-45, 1e-45]])
    torch.testing.assert_close(round_trip(coefficients), coefficients, rtol=2**-4, atol=1e-41)


@pytest.mark.parametrize("exponent", [LEAST_EXPONENT, -1, 0, 127])
def test_decoded_coefficients_are_finite(exponent: int) -> None:
    codes = torch.tensor([[0x7E, 0xFE, 0x01, 0x00]], dtype=torch.uint8)  # 448, -448, 2^-9, 0
    back = from_e4m3(codes, torch.tensor([exponent], dtype=torch.int8))
    assert bool(back.isfinite().all())
    assert back[0, 3] == 0
